"""Dropout is in both passes alike: runs repeat, resume and agree between ranks as without it."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemo_cdt.config import Config, Model, Parallel, Recompute, Schedule
from tests import jobs, resuming
from tests.nemo.test_layouts import by_token
from tests.ranks import on_ranks
from tests.runs import TINY, VOCABULARY, settings_of, small_run, write_documents

DROPOUT = replace(TINY, hidden_dropout=0.1, attention_dropout=0.1)


def train_each(runs: list[tuple[Config, str | None]]) -> list[dict[str, Any]]:
    """One after another in the same processes. A mutation stays, so those that have one come last."""
    results = []
    for config, mutation in runs:
        results.append(jobs.train(config, mutation))
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
    return results


@dataclass
class Shared:
    """What all runs of this module start from."""

    folder: Path

    def config(
        self, name: str, model: Model = DROPOUT, seed: int = 42, recompute: Recompute = Recompute.none, **changes: Any
    ) -> Config:
        config = small_run(self.folder / name, self.folder / "d.jsonl", model=model, **changes)
        config.trainer = replace(config.trainer, seed=seed, recompute=recompute)
        config.init.nemo = str(self.folder / "nemo")
        return config


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    folder = tmp_path_factory.mktemp("dropout")
    write_documents(folder / "d.jsonl", kind="sft", count=40, longest=60)
    on_ranks(jobs.initial, 1, DROPOUT, VOCABULARY, folder / "hf", folder / "nemo")
    return Shared(folder)


@pytest.fixture(scope="module")
def runs(shared: Shared) -> dict[str, dict[str, Any]]:
    beta_zero, plain = settings_of(beta=0.0), settings_of("ce")
    configs = {
        "once": shared.config("once"),
        "again": shared.config("again"),
        "another seed": shared.config("another seed", seed=7),
        "recomputed": shared.config("recomputed", recompute=Recompute.full),
        "without": shared.config("without", model=TINY),
        "beta 0": shared.config("beta 0", objective=beta_zero),
        "plain": shared.config("plain", objective=plain),
        "beta 0, drawn anew": shared.config("drawn anew", objective=beta_zero),
    }
    mutations = {"beta 0, drawn anew": "detection_draws_for_itself"}
    found = on_ranks(train_each, 1, [(config, mutations.get(name)) for name, config in configs.items()])[0]
    return dict(zip(configs, found, strict=True))


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Bit for bit."""
    final = all(np.array_equal(found["final"][name], weight) for name, weight in expected["final"].items())
    return final and found["losses"] == expected["losses"]


def test_a_run_repeats_and_its_seed_decides_what_is_dropped(runs: dict[str, dict[str, Any]]) -> None:
    assert same(runs["again"], runs["once"])
    assert not same(runs["another seed"], runs["once"])


def test_detection_drops_too(runs: dict[str, dict[str, Any]]) -> None:
    """It is the first thing that draws."""
    first, other, without = (runs[name]["detections"][0]["delta"] for name in ("once", "another seed", "without"))
    assert not np.allclose(first, without, atol=1e-3)
    assert not np.allclose(first, other, atol=1e-3)


def test_beta_zero_is_plain_training_bit_for_bit(runs: dict[str, dict[str, Any]]) -> None:
    """Training drops what detection dropped."""
    assert same(runs["beta 0"], runs["plain"])
    assert not same(runs["beta 0, drawn anew"], runs["plain"])


def test_what_is_computed_again_drops_the_same_again(runs: dict[str, dict[str, Any]]) -> None:
    for found, expected in zip(runs["recomputed"]["detections"], runs["once"]["detections"], strict=True):
        np.testing.assert_allclose(found["delta"], expected["delta"], atol=1e-6)
    for name, weight in runs["once"]["final"].items():
        np.testing.assert_allclose(runs["recomputed"]["final"][name], weight, atol=1e-5, err_msg=name)


def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(shared: Shared) -> None:
    def config(name: str, **changes: Any) -> Config:
        config = resuming.run(shared.folder / name, shared.folder / "d.jsonl", model=DROPOUT, **changes)
        config.optim.schedule = Schedule.constant
        return config

    resuming.train(config("whole"), config("parts", steps=3), config("parts", resume=True))
    resuming.assert_same(shared.folder / "parts", shared.folder / "whole")


@pytest.fixture(scope="module")
def ranks(shared: Shared) -> dict[str, list[dict[str, Any]]]:
    layouts = {
        "TP2": (Parallel(tensor=2), None),
        "TP2+SP": (Parallel(tensor=2, sequence=True), None),
        "TP2, each rank its own": (Parallel(tensor=2), "ranks_draw_their_own"),
    }
    runs = [(shared.config(name, parallel=parallel), mutation) for name, (parallel, mutation) in layouts.items()]
    for config, _ in runs:
        config.trainer.devices = 2
    found = on_ranks(train_each, 2, runs)
    return {name: [rank[index] for rank in found] for index, name in enumerate(layouts)}


def assert_ranks_agree(one: dict[str, Any], other: dict[str, Any]) -> None:
    """In all that both of them hold: norms, and without sequence parallelism deltas."""
    norms = [name for name in one["final"] if "norm" in name]
    assert len(norms) == 2 * DROPOUT.num_layers + 1
    for name in norms:
        np.testing.assert_array_equal(one["final"][name], other["final"][name], err_msg=name)
    by_token([one, other])


@pytest.mark.parametrize("name", ["TP2", "TP2+SP"])
def test_tensor_parallel_ranks_drop_the_same_of_what_they_share(
    name: str, ranks: dict[str, list[dict[str, Any]]]
) -> None:
    assert_ranks_agree(*ranks[name])


def test_ranks_that_draw_their_own_are_noticed(ranks: dict[str, list[dict[str, Any]]]) -> None:
    with pytest.raises(AssertionError, match="not equal"):
        assert_ranks_agree(*ranks["TP2, each rank its own"])


def drawn(folder: Path) -> list[torch.Tensor]:
    """Each rank's state of the generator that tensor-parallel ranks do not share."""
    return [rank["megatron"]["model-parallel-rng"] for rank in resuming.random_states(folder / "checkpoints/step=3")]


def seeded(rank: int) -> torch.Tensor:
    """The same before anything is drawn: Megatron adds 2718 to the run's seed."""
    return torch.Generator().manual_seed(42 + 2718 + rank).get_state()


def test_attention_drops_of_each_ranks_heads_what_others_do_not(
    shared: Shared, runs: dict[str, dict[str, Any]], ranks: dict[str, list[dict[str, Any]]]
) -> None:
    one, other = drawn(shared.folder / "TP2")
    assert not torch.equal(one, other)
    assert not torch.equal(one, seeded(0))
    assert not torch.equal(other, seeded(1))
    assert torch.equal(drawn(shared.folder / "without")[0], seeded(0))
