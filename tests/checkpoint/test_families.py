"""CDT on each family of models: from a Hugging Face folder to one, equal to the independent reference there."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from nemo_cdt.config import Config, ContextComm, Packing, Parallel, Resharding
from nemo_cdt.config.compose import compose
from tests import jobs, llama
from tests.families import FAMILIES
from tests.nemo.test_layouts import assert_same
from tests.nemo.test_parity import WEIGHT, assert_steps_equal, reference_steps
from tests.ranks import on_ranks
from tests.runs import VOCABULARY, small_run, write_documents

LOGIT = 1e-4  # fp32, of logits up to 10, between weights that differ by up to 1e-5
STEPS = 2


def train_each(*configs: Config) -> list[dict[str, Any]]:
    """One after another in the same processes, with what each ends with: its checkpoint's tensors, and its export."""
    results = []
    for config in configs:
        result = jobs.train(config)
        if os.environ["RANK"] == "0":
            from nemo_cdt.checkpoint.steps import latest_checkpoint
            from nemo_cdt.nemo.convert import convert

            checkpoint = latest_checkpoint(Path(config.output, "checkpoints"))
            result["state"] = jobs.tensors(checkpoint)
            convert(checkpoint, Path(config.output, "hf"))
        results.append(result)
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
    return results


@dataclass
class Shared:
    """What all runs of this module start from."""

    folder: Path
    documents: list[tuple]

    def config(self, family: str, name: str = "run", **changes: Any) -> Config:
        config = small_run(self.folder / family / name, self.folder / "d.jsonl", steps=STEPS, **changes)
        folder = str(self.folder / family / "hf")
        of_init = compose([f"init.hf={folder}", "data=jsonl", "data.path=rows.jsonl"]).model  # and nothing else is said
        config.model, config.init.hf = replace(of_init, tokenizer="byte"), folder
        config.trainer.checkpoint_resharding = Resharding.full  # the same tensors under any layout
        return config

    def reference(self, family: str) -> PreTrainedModel:
        return llama.loaded(self.folder / family / "hf")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    folder = tmp_path_factory.mktemp("families")
    documents = write_documents(folder / "d.jsonl", kind="sft", count=20, shortest=44, longest=60)
    for family, model in FAMILIES.items():
        llama.random_hugging_face(model, VOCABULARY).save_pretrained(folder / family / "hf")
    return Shared(folder, documents)


@pytest.fixture(scope="module")
def runs(shared: Shared) -> dict[str, dict[str, Any]]:
    found = on_ranks(train_each, 1, *(shared.config(family) for family in FAMILIES))[0]
    return dict(zip(FAMILIES, found, strict=True))


def assert_equal(shared: Shared, family: str, run: dict[str, Any], reference: PreTrainedModel) -> None:
    """Masks, deltas and losses of every step; weights and logits of what is exported at last."""
    config = shared.config(family)
    assert_steps_equal(config, run, reference_steps(config, run, shared.documents, reference))
    exported = llama.loaded(Path(config.output, "hf"))
    assert type(exported) is type(reference)
    assert exported.state_dict().keys() == reference.state_dict().keys()
    for name, expected in reference.state_dict().items():
        np.testing.assert_allclose(exported.state_dict()[name], expected, atol=WEIGHT, err_msg=name)
    tokens = torch.arange(60)[None] * 37 % VOCABULARY
    with torch.no_grad():
        np.testing.assert_allclose(exported(tokens).logits, reference(tokens).logits, atol=LOGIT)


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_deltas_and_the_exported_model_equal_the_reference(
    family: str, shared: Shared, runs: dict[str, dict[str, Any]]
) -> None:
    assert_equal(shared, family, runs[family], shared.reference(family))


def bias_dropped(model: PreTrainedModel) -> None:
    nn.init.zeros_(model.model.layers[1].self_attn.q_proj.bias)


def norm_skipped(model: PreTrainedModel) -> None:
    model.model.layers[1].self_attn.q_norm = nn.Identity()


def one_more_in_the_window(model: PreTrainedModel) -> None:
    model.config.sliding_window += 1


def untied(model: PreTrainedModel) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())


def attention_not_scaled(model: PreTrainedModel) -> None:
    model.model.rotary_emb.attention_scaling = 1.0


MUTATIONS: dict[str, Callable[[PreTrainedModel], None]] = {
    "qwen2": bias_dropped,
    "qwen3": norm_skipped,
    "mistral": one_more_in_the_window,
    "tied llama": untied,
    "yarn llama": attention_not_scaled,
}


@pytest.mark.parametrize("family", MUTATIONS)
def test_what_sets_a_family_apart_is_noticed(family: str, shared: Shared, runs: dict[str, dict[str, Any]]) -> None:
    reference = shared.reference(family)
    MUTATIONS[family](reference)
    with pytest.raises(AssertionError, match=r"not equal|Not equal|Mismatch"):
        assert_equal(shared, family, runs[family], reference)


LAYOUTS: dict[str, tuple[str, Parallel, int]] = {  # a family, its layout, and documents in a row
    "TP2": ("qwen3", Parallel(tensor=2), 1),
    "TP2+SP": ("qwen3", Parallel(tensor=2, sequence=True), 1),
    "CP2": ("mistral", Parallel(context=2, context_comm=ContextComm.all_gather), 1),
    "CP2 packed": ("mistral", Parallel(context=2, context_comm=ContextComm.a2a), 2),
}


@pytest.fixture(scope="module")
def split(shared: Shared) -> dict[str, list[dict[str, Any]]]:
    configs = []
    for name, (family, parallel, per_row) in LAYOUTS.items():
        config = shared.config(family, name, parallel=parallel)
        config.trainer.devices = 2
        if per_row == 2:
            config.data = replace(
                config.data, pack=True, packing=Packing.sequential, seq_length=128, document_length=64
            )
            config.trainer.global_batch_size = 2
        configs.append(config)
    ranks = on_ranks(train_each, 2, *configs)
    return {name: [rank[index] for rank in ranks] for index, name in enumerate(LAYOUTS)}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_the_answer_of_one_process(
    name: str, split: dict[str, list[dict[str, Any]]], runs: dict[str, dict[str, Any]]
) -> None:
    family, _, per_row = LAYOUTS[name]
    assert_same(split[name], runs[family], packed=per_row > 1)
