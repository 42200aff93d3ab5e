"""A short run that saves, and what it has in common with one that was interrupted and went on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemo_cdt.config import Config
from tests import jobs
from tests.ranks import on_ranks
from tests.runs import small_run

STEPS = 6


def run(folder: Path, documents: Path, *, steps: int = STEPS, devices: int = 1, **changes: Any) -> Config:
    """Validates after steps 3 and 6, saves after 2, 4 and 6. A step is one micro-batch, as Lightning counts batches."""
    config = small_run(folder, documents, steps=steps, micro_batch=4 // devices, **changes)
    config.trainer.val_interval, config.trainer.checkpoint_interval = 3, 2
    config.trainer.devices, config.data.validation_samples = devices, 4
    return config


def train(*configs: Config) -> list[dict[str, Any]]:
    """One after another, in the same processes; what the ranks of the last one saw."""
    return on_ranks(jobs.train_each, configs[0].trainer.world_size, *configs)


def checkpoints(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").iterdir()}


def random_states(checkpoint: Path) -> list[dict[str, Any]]:
    common = torch.load(checkpoint / "weights/common.pt")
    return next(state for state in common["callbacks"].values() if "random" in state)["random"]["ranks"]


def metrics(folder: Path) -> list[dict[str, float]]:
    """Without what a clock measured, and without rows of nothing else, which come when a checkpoint is whole."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if "time" not in k and "second" not in k} for row in rows]
    return [row for row in rows if row.keys() != {"step"}]


def assert_same(folder: Path, expected: Path, steps: int = STEPS) -> None:
    """Bit for bit: weights, moments, random states, and the figures of every step."""
    last = f"checkpoints/step={steps}"
    found, want = jobs.tensors(folder / last), jobs.tensors(expected / last)
    assert found.keys() == want.keys()
    assert any("exp_avg_sq" in name for name in want)
    for name in want:
        np.testing.assert_array_equal(found[name], want[name], err_msg=name)
    for ours, theirs in zip(random_states(folder / last), random_states(expected / last), strict=True):
        assert ours["python"] == theirs["python"]
        assert ours["numpy"] == theirs["numpy"]
        assert torch.equal(ours["torch"], theirs["torch"])
        assert ours["megatron"].keys() == theirs["megatron"].keys()
        assert all(torch.equal(ours["megatron"][k], v) for k, v in theirs["megatron"].items())
    assert metrics(folder) == metrics(expected)
