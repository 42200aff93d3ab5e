"""LOGO's preference loss equals an independent reference under every kind of layout; the tests can tell."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemo_cdt import config as c
from tests import jobs, llama
from tests.nemo.test_layouts import LAYOUTS, Layout
from tests.ranks import on_ranks
from tests.reference import ReferenceLOGO, cosine
from tests.runs import TINY, settings_of, small_run

VOCABULARY = 384  # of the byte tokenizer, padded
MODEL = replace(TINY, vocab_size=VOCABULARY)
WEIGHT = 1e-5  # fp32 after steps of up to 2e-4 each
BOS, EOS, USER, ASSISTANT = 256, 257, 260, 261


def tokens(prompt: str, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """By the chat template of the byte tokenizer, the answer and its end labelled."""
    before = [BOS, USER, *prompt.encode(), EOS, ASSISTANT]
    given = [*answer.encode(), EOS]
    return torch.tensor(before + given), torch.tensor([-100] * len(before) + given)


def write_preferences(path: Path, count: int) -> list[list[tuple]]:
    """Answers of uneven length, the shorter ones on one context-parallel rank alone."""
    rng, found = np.random.default_rng(0), []

    def text(longest: int) -> str:
        return "".join(rng.choice(list("abcdefgh "), size=rng.integers(3, longest)))

    with path.open("w") as file:
        for _ in range(count):
            prompt, answers = text(30), [text(12) for _ in range(3)]
            file.write(json.dumps({"prompt": prompt, "chosen": answers[0], "rejected": answers[1:]}) + "\n")
            found.append([tokens(prompt, answer) for answer in answers])
    return found


@dataclass
class Shared:
    folder: Path
    preferences: list[list[tuple]]

    def run(self, layout: Layout, mutate: str | None = None) -> tuple[c.Config, list[dict[str, Any]]]:
        config = small_run(
            self.folder / str(len(list(self.folder.iterdir()))),
            self.folder / "d.jsonl",
            model=MODEL,
            parallel=layout.parallel,
            objective=settings_of("logo"),
            init=c.Init(nemo=str(self.folder / "nemo")),
        )
        config.model.tokenizer = "byte"
        config.trainer.devices = layout.ranks
        config.data = replace(config.data, name=c.DataName.preferences, seq_length=192)
        return config, on_ranks(jobs.train_and_read, layout.ranks, config, mutate)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    folder = tmp_path_factory.mktemp("logo")
    on_ranks(jobs.initial, 1, MODEL, VOCABULARY, folder / "hf", folder / "nemo")
    return Shared(folder, write_preferences(folder / "d.jsonl", 12))


def assert_equal(config: c.Config, ranks: list[dict[str, Any]], preferences: list[list[tuple]]) -> None:
    optim, how = config.optim, config.objective
    expected = ReferenceLOGO(
        llama.random_hugging_face(MODEL, VOCABULARY),
        cosine(optim.lr, optim.min_lr, config.trainer.max_steps),
        preference_beta=how.preference_beta,
        margin=how.margin,
        sft_weight=how.sft_weight,
        weight_decay=optim.weight_decay,
        clip_grad=optim.clip_grad,
        eps=optim.eps,
    )
    batch = config.trainer.global_batch_size
    for index, metrics in enumerate(ranks[0]["metrics"]):
        loss = expected.step(preferences[index * batch : (index + 1) * batch])
        assert metrics["preference_loss"] == pytest.approx(loss, abs=1e-4)  # beta 10 of a difference of two means
        assert metrics["grad_norm"] == pytest.approx(expected.grad_norm, rel=1e-4)
    found = llama.renamed(MODEL, whole(ranks[0]["state"]))
    for name, value in expected.model.state_dict().items():
        np.testing.assert_allclose(found[name], value.detach().numpy(), atol=WEIGHT, err_msg=name)


def whole(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights of a checkpoint, which stacks layers and has Transformer Engine's names, under those of our module."""
    norms = {
        "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
        "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
    }
    found: dict[str, np.ndarray] = {}
    for name, value in state.items():
        short = name.removeprefix("module.")
        for theirs, ours in norms.items():
            short = short.replace(theirs, ours)
        if short.startswith("decoder.layers."):
            found |= {short.replace("layers.", f"layers.{index}."): layer for index, layer in enumerate(value)}
        else:
            found[short] = value
    return found


@pytest.mark.parametrize("layout", ["one process", "TP2+SP", "CP2", "PP2", "DP2"])
def test_weights_equal_the_reference(layout: str, shared: Shared) -> None:
    assert_equal(*shared.run(LAYOUTS.get(layout, Layout(1))), shared.preferences)


@pytest.mark.parametrize(
    ("mutation", "layout"),
    [("answers_of_one_rank", "CP2"), ("preferences_counted_by_every_rank", "CP2"), ("answers_summed", "one process")],
)
def test_a_mutation_is_noticed(mutation: str, layout: str, shared: Shared) -> None:
    config, ranks = shared.run(LAYOUTS.get(layout, Layout(1)), mutation)
    with pytest.raises(AssertionError):
        assert_equal(config, ranks, shared.preferences)
