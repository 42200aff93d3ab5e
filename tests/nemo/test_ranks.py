"""Two ranks that their launcher started, and that end early: nothing stays behind, and the next attempt goes on."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from nemo_cdt.checkpoint.steps import step_of
from nemo_cdt.config import Config, save
from tests import jobs
from tests.ranks import started
from tests.resuming import assert_same, run, train
from tests.runs import write_documents

STEPS = 80
MARK = "TEST_OF_RANKS"


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents") / "d.jsonl"
    write_documents(path, kind="sft", count=40, longest=60)
    return path


def two_ranks(folder: Path, documents: Path, **changes: Any) -> Config:
    """Saves after steps 20, 40, 60 and 80, so that what comes after 20, 40 or 60 is before the end."""
    config = run(folder, documents, steps=STEPS, devices=2, **changes)
    config.trainer.val_interval, config.trainer.checkpoint_interval = 0, 20
    return config


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Any]:
    """Starts a launcher in a process of its own, and ends at last whatever it left."""

    def start(config: Config) -> ForkServerProcess:
        save(config, tmp_path / "run.yaml")
        return started(jobs.launch, tmp_path, tmp_path / "run.yaml", {MARK: str(tmp_path)}, "nemo_cdt.training")

    yield start
    for process in marked(tmp_path):
        process.kill()


def marked(folder: Path) -> list[psutil.Process]:
    """Every process that a launcher of ours started, however far down."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_rank(rank: str, folder: Path) -> None:
    (found,) = (p for p in marked(folder) if "nemo_cdt.training" in p.cmdline() and p.environ().get("RANK") == rank)
    found.kill()


def wait_until(condition: Callable[[], bool], process: ForkServerProcess | None = None) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process is None or process.exitcode is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_ranks_go_on_after_sigkill_of_launcher_or_rank_and_after_sigterm(
    launch: Any, documents: Path, tmp_path: Path
) -> None:
    def done() -> int:
        last = tmp_path / "run/checkpoints/last"
        return int(os.readlink(last).removeprefix("step=")) if last.is_symlink() else 0

    def begun() -> int:
        return max(map(step_of, (tmp_path / "run/checkpoints").glob("step=*[0-9]")))

    killed = launch(two_ranks(tmp_path / "run", documents))
    wait_until(lambda: done() > 0, killed)
    killed.kill()
    wait_until(lambda: not marked(tmp_path))

    before = done()
    failed = launch(two_ranks(tmp_path / "run", documents, resume=True))
    wait_until(lambda: done() > before, failed)
    kill_rank("1", tmp_path)
    failed.join(timeout=300)
    assert failed.exitcode == 1
    last = (tmp_path / "stderr").read_text().splitlines()[-1]
    assert last == "error: training in 2 processes failed, for the reason above"
    wait_until(lambda: not marked(tmp_path))

    before = done()
    preempted = launch(two_ranks(tmp_path / "run", documents, resume=True))
    wait_until(lambda: begun() > before, preempted)
    interval = begun()
    preempted.terminate()
    preempted.join(timeout=300)
    assert preempted.exitcode == 143
    said = (tmp_path / "stdout").read_text()
    assert f"stopped by SIGTERM with {done()} steps saved: resume=true goes on from there" in said
    assert interval < done() < STEPS
    assert not marked(tmp_path)

    train(two_ranks(tmp_path / "run", documents, resume=True))
    train(two_ranks(tmp_path / "uninterrupted", documents))
    assert_same(tmp_path / "run", tmp_path / "uninterrupted", STEPS)
