"""What a run keeps when its numbers are none any more."""

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_cdt import config as c
from nemo_cdt.checkpoint.steps import finished_checkpoints
from tests import jobs
from tests.ranks import on_ranks
from tests.runs import small_run, write_documents


def poisoned(folder: Path, mutate: str | None = None, **changes: Any) -> tuple[list[dict[str, Any]], Path]:
    """A run of 4 steps that saves after each; rank 1 has a NaN in a weight from the third on."""
    write_documents(folder / "d.jsonl", kind="lm", count=16, longest=60)
    config = small_run(folder / "run", folder / "d.jsonl", steps=4, **changes)
    config.trainer.devices, config.trainer.checkpoint_interval = 2, 1
    return on_ranks(jobs.fit_poisoned, 2, config, 3, 1, mutate), Path(config.output)


def kept(output: Path) -> list[str]:
    return [checkpoint.name for checkpoint in finished_checkpoints(output / "checkpoints")]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"parallel": c.Parallel(pipeline=2)},
        {"parallel": c.Parallel(overlap_grad_reduce=True), "optim": c.Optim(lr=2e-4, min_lr=2e-5, clip_grad=0.0)},
    ],
    ids=["DP2", "PP2", "DP2 overlapped without clipping"],
)
def test_a_nan_on_one_rank_ends_all_and_the_last_good_checkpoint_stays(changes: Any, tmp_path: Path) -> None:
    ranks, output = poisoned(tmp_path, **changes)
    assert [rank["code"] for rank in ranks] == [1, 1]
    (line,) = [line for line in ranks[0]["said"].splitlines() if line.startswith("error: ")]
    assert "error: " not in ranks[1]["said"]
    assert line.startswith("error: training failed in step 3: the loss is nan and the gradient's norm is nan. ")
    assert f"{output}/checkpoints/step=2 is the last checkpoint before it" in line
    assert kept(output) == ["step=1", "step=2"]
    rows = [json.loads(row) for row in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] == "nan" for row in rows if "loss" in row] == [False, False, True]


def test_weights_that_the_last_step_destroys_are_not_saved_and_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    write_documents(tmp_path / "d.jsonl", kind="lm", count=16, longest=60)
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", steps=1)
    on_ranks(jobs.fit, 1, config)
    config.resume, config.trainer.max_steps, config.export.hf = True, 3, str(tmp_path / "hf")
    # The step after a resumption still has the learning rate of before.
    config.optim = c.Optim(lr=1e30, min_lr=0.0, schedule=c.Schedule.constant, warmup_steps=0)
    (rank,) = on_ranks(jobs.fit_poisoned, 1, config, 99, 0)
    assert rank["code"] == 1
    (line,) = [line for line in rank["said"].splitlines() if line.startswith("error: ")]
    assert line.startswith("error: training failed in step 3: the weights are too large or no numbers after it. ")
    assert f"{config.output}/checkpoints/step=1 is the last checkpoint before it" in line
    assert kept(Path(config.output)) == ["step=1"]
    assert not (tmp_path / "hf").exists()


def test_a_checkpoint_of_nans_is_noticed(tmp_path: Path) -> None:
    ranks, output = poisoned(tmp_path, "nan_is_a_number")
    assert [rank["code"] for rank in ranks] == [0, 0]
    assert kept(output) == ["step=3", "step=4"]


def test_a_resumed_run_says_from_where_and_an_export_where_it_is(tmp_path: Path) -> None:
    write_documents(tmp_path / "d.jsonl", kind="lm", count=16, longest=60)
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", steps=1)
    on_ranks(jobs.fit, 1, config)
    config.resume, config.trainer.max_steps, config.export.hf = True, 2, str(tmp_path / "hf")
    (rank,) = on_ranks(jobs.fit_poisoned, 1, config, 99, 0)
    first, last = [line for line in rank["said"].splitlines() if line.startswith(("this run", "exported"))]
    assert first == f"this run goes on from step 1, {tmp_path}/run/checkpoints/step=1"
    assert last == f"exported to {tmp_path}/hf, for transformers.AutoModelForCausalLM"
    assert (tmp_path / "hf/config.json").exists()
