"""The rates that Megatron-Bridge's front end trains with are those of NeMo's schedules."""

from pathlib import Path

import numpy as np
import pytest

from nemo_cdt.bridge.learning_rate import learning_rate
from nemo_cdt.config import Optim, Schedule
from tests import jobs
from tests.ranks import on_ranks
from tests.runs import small_run, write_documents


@pytest.mark.parametrize("schedule", Schedule)
def test_each_step_has_the_rate_of_nemo(schedule: Schedule, tmp_path: Path) -> None:
    write_documents(tmp_path / "d.jsonl", kind="sft", count=40, longest=60)
    least = {"min_lr": 1e-5} if schedule is Schedule.cosine else {}
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", steps=6, global_batch=1, name="ce")
    config.optim = Optim(lr=3e-4, warmup_steps=2, schedule=schedule, **least)

    [seen] = on_ranks(jobs.train, 1, config)

    found = [learning_rate(config.optim, 6, step) for step in range(6)]
    np.testing.assert_allclose(found, [row["lr"] for row in seen["metrics"]], rtol=1e-6)  # logged in fp32
    assert len(set(found)) > 2
