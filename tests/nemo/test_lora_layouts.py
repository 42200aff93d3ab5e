"""CDT trains LoRA adapters alone: what it computes equals an independent reference, under every kind of layout."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from nemo_cdt import config as c
from nemo_cdt.describe import trainable_parameters
from tests import jobs, llama
from tests.megatron.test_schedule import broken_off
from tests.nemo.test_layouts import LAYOUTS, Layout, assert_same
from tests.nemo.test_parity import WEIGHT, assert_steps_equal, reference_steps
from tests.ranks import on_ranks
from tests.runs import TINY, VOCABULARY, small_run, write_documents

LORA = c.Lora(rank=8, alpha=16)


class LowRank(nn.Module):
    def __init__(self, a: nn.Parameter, b: nn.Parameter) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + LORA.alpha / LORA.rank * self.b @ self.a


def parts(name: str, b: np.ndarray) -> list[np.ndarray]:
    """Of the B of Megatron's ``name``, those of the matrices that Hugging Face keeps apart, in that order."""
    if name == "linear_qkv":
        groups, heads = TINY.num_query_groups, TINY.num_attention_heads
        rows = b.reshape(groups, heads // groups + 2, -1, LORA.rank)
        return [part.reshape(-1, LORA.rank) for part in (rows[:, :-2], rows[:, -2], rows[:, -1])]
    return np.split(b, 2) if name == "linear_fc1" else [b]


def adapted(weights: dict[str, np.ndarray]) -> tuple[PreTrainedModel, dict[str, list[nn.Parameter]]]:
    """A frozen Hugging Face Llama with adapters; and those, by Megatron's names: an A, and the parts of its B."""
    model = llama.hugging_face(TINY, VOCABULARY, weights).requires_grad_(False)
    adapters = {}
    for index, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        places = {
            "self_attention.linear_qkv": [attention.q_proj, attention.k_proj, attention.v_proj],
            "self_attention.linear_proj": [attention.o_proj],
            "mlp.linear_fc1": [mlp.gate_proj, mlp.up_proj],
            "mlp.linear_fc2": [mlp.down_proj],
        }
        for place, linears in places.items():
            prefix = f"decoder.layers.{index}.{place}.adapter."
            a = nn.Parameter(torch.tensor(weights[f"{prefix}linear_in.weight"]))
            bs = parts(place.partition(".")[2], weights[f"{prefix}linear_out.weight"])
            adapters[prefix] = [a, *(nn.Parameter(torch.tensor(b)) for b in bs)]
            for linear, b in zip(linears, adapters[prefix][1:], strict=True):
                parametrize.register_parametrization(linear, "weight", LowRank(a, b))
    return model, adapters


def assert_equal(config: c.Config, run: dict[str, Any], documents: list[tuple]) -> None:
    model, adapters = adapted(run["initial"])
    assert_steps_equal(config, run, reference_steps(config, run, documents, model))
    for prefix, (a, *bs) in adapters.items():
        np.testing.assert_allclose(run["final"][f"{prefix}linear_in.weight"], a.detach(), atol=WEIGHT)
        found = parts(prefix.split(".")[-3], run["final"][f"{prefix}linear_out.weight"])
        for part, b in zip(found, bs, strict=True):
            np.testing.assert_allclose(part, b.detach(), atol=WEIGHT, err_msg=prefix)


@dataclass
class Shared:
    """What all runs of this module start from."""

    folder: Path
    documents: list[tuple]

    def config(self, name: str, layout: Layout, lora: c.Lora = LORA, **changes: Any) -> c.Config:
        output = self.folder / name.replace(" ", "_")
        config = small_run(output, self.folder / "d.jsonl", lora=lora, beta=200.0, **changes)
        config.parallel, config.init.nemo = layout.parallel, str(self.folder / "nemo")
        config.trainer = replace(config.trainer, devices=layout.ranks, **layout.trainer)
        config.optim.lr = 1e-3  # with beta again 0.2, and so that adapters that begin at nothing soon matter
        return config


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    folder = tmp_path_factory.mktemp("lora")
    documents = write_documents(folder / "d.jsonl", kind="sft", count=40, longest=60)
    on_ranks(jobs.initial, 1, TINY, VOCABULARY, folder / "hf", folder / "nemo")
    return Shared(folder, documents)


@pytest.fixture(scope="module")
def run(shared: Shared) -> dict[str, Any]:
    return on_ranks(jobs.train, 1, shared.config("run", Layout(1), steps=5))[0]


def test_masks_deltas_and_adapters_equal_the_reference(shared: Shared, run: dict[str, Any]) -> None:
    assert_equal(shared.config("run", Layout(1), steps=5), run, shared.documents)


@pytest.mark.parametrize("mutation", ["adapters_unseen_by_detection", "freezing_forgotten"])
def test_a_mutation_is_noticed(mutation: str, shared: Shared) -> None:
    config = shared.config(mutation, Layout(1))
    mutated = on_ranks(jobs.train, 1, config, mutation)[0]
    with pytest.raises(AssertionError, match=r"not equal|Not equal"):
        assert_equal(config, mutated, shared.documents)


def test_only_adapters_change_and_detection_leaves_them_no_gradient(run: dict[str, Any]) -> None:
    changed = {name for name, weight in run["final"].items() if not np.array_equal(weight, run["initial"][name])}
    assert changed == {name for name in run["final"] if ".adapter." in name}
    assert len(changed) == 2 * len(LORA.targets) * TINY.num_layers
    assert run["weight_gradients_after_detection"] == [0.0] * 5


def test_what_was_frozen_stays_frozen_after_an_exception(shared: Shared) -> None:
    states = on_ranks(broken_off, 1, shared.config("broken off", Layout(1)))[0]
    assert set(states["before"]["trainable"]) == {True, False}
    assert states["after"] == states["before"]


def test_new_adapters_change_no_bit_of_what_is_detected(shared: Shared, run: dict[str, Any]) -> None:
    """B is zero, so the first step's is that of training all weights."""
    whole = on_ranks(jobs.train, 1, shared.config("whole", Layout(1), lora=c.Lora(), steps=1))[0]
    for found, expected in zip([d for d in run["detections"] if d["step"] == 0], whole["detections"], strict=True):
        np.testing.assert_array_equal(found["delta"], expected["delta"])
        np.testing.assert_array_equal(found["noise"], expected["noise"])


def test_what_trains_is_counted_as_it_is_announced(shared: Shared, run: dict[str, Any]) -> None:
    expected = sum(weight.size for name, weight in run["final"].items() if ".adapter." in name)
    assert trainable_parameters(LORA, TINY) == expected
    first = (shared.folder / "run/metrics.jsonl").read_text().splitlines()[0]
    assert first == f'{{"step": 1, "trainable_parameters": {float(expected)}}}'


def test_dropout_reaches_the_adapters(shared: Shared, run: dict[str, Any]) -> None:
    config = shared.config("dropout", Layout(1), lora=replace(LORA, dropout=0.5), steps=1)
    dropped = on_ranks(jobs.train, 1, config)[0]
    assert dropped["losses"][0] == run["losses"][0]  # B is zero
    gradients = [each["metrics"][0]["grad_norm"] for each in (dropped, run)]
    assert gradients[0] != pytest.approx(gradients[1], rel=0.01)


@pytest.fixture(scope="module")
def expected(shared: Shared) -> dict[str, Any]:
    return on_ranks(jobs.train_and_read, 1, shared.config("expected", Layout(1)))[0]


@pytest.mark.parametrize("name", ["DP2 overlapped", "TP2+SP", "CP2", "full recompute", "selective recompute"])
def test_a_layout_gives_the_answer_of_one_process(name: str, shared: Shared, expected: dict[str, Any]) -> None:
    layout = LAYOUTS[name]
    assert_same(on_ranks(jobs.train_and_read, layout.ranks, shared.config(name, layout)), expected)


def test_recomputation_that_trains_nothing_is_noticed(shared: Shared, expected: dict[str, Any]) -> None:
    """Megatron says nothing where no input of its recomputed layers wants a gradient."""
    config = shared.config("unwanted", LAYOUTS["full recompute"])
    ranks = on_ranks(jobs.train_and_read, 1, config, "no_gradient_wanted_below")
    with pytest.raises(AssertionError, match="Not equal"):
        assert_same(ranks, expected)
