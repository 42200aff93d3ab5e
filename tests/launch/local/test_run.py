"""The launcher with real child processes: NeMo-Run, torchrun, two ranks; only what they run is not a training."""

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from nemo_cdt.config import Config, load, save
from nemo_cdt.launch.local import run as local
from tests import jobs
from tests.ranks import started


def config(output: Path, name: str, **values: object) -> Path:
    config = Config(name=name, output=str(output), report=False, **values)
    config.trainer.devices = 2
    save(config, output.with_suffix(".yaml"))
    return output.with_suffix(".yaml")


def test_two_devices_are_two_ranks_and_the_run_is_recorded_before_they_start(tmp_path, monkeypatch):
    """In an interpreter of its own, which NeMo-Run would ask for its home."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    code = f"""
        from nemo_cdt.launch import launch
        from nemo_cdt.launch.local import run as local
        from nemo_cdt.config import load
        local.TRAIN = "tests.child"
        launch(load({str(config(tmp_path / "run", "fine", compare_to="ce"))!r}))
    """

    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)

    assert done.returncode == 0
    assert "rank 0 of 2" in done.stdout
    assert "rank 1 of 2" in done.stdout
    assert done.stdout.rstrip().endswith(f"{tmp_path}/run/pid1")
    assert load(tmp_path / "run/config.yaml").compare_to == "ce"
    baseline = load(tmp_path / "run/baseline/config.yaml")
    assert (baseline.objective.name, baseline.compare_to, baseline.report) == ("ce", None, False)
    assert not (tmp_path / "home").exists()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Any]:
    """Starts ``launch`` in a process of its own, with ``tests.child`` for the training."""
    running: list[ForkServerProcess] = []

    def start(name: str, **values: object) -> ForkServerProcess:
        file = config(tmp_path / "run", name, **values)
        running.append(started(jobs.launch, tmp_path, file, {}, "tests.child"))
        return running[-1]

    yield start
    for each in running:
        each.kill()
        each.join()


def ended(process: ForkServerProcess) -> int | None:
    process.join(timeout=120)
    return process.exitcode


def test_a_mistake_that_a_rank_names_is_the_last_line_and_exits_with_2(launch, tmp_path):
    assert ended(launch("mistake")) == 2
    last = (tmp_path / "stderr").read_text().splitlines()[-1]
    assert last == "error: [Errno 2] No such file or directory: '/rows/that/are/not/there.jsonl'"


def test_a_bug_in_one_rank_ends_the_run_and_shows_its_traceback(launch, tmp_path):
    assert ended(launch("bug")) == 1
    assert "RuntimeError: a bug of rank 1" in (tmp_path / "stdout").read_text()
    last = (tmp_path / "stderr").read_text().splitlines()[-1]
    assert last == "error: training in 2 processes failed, for the reason above"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ranks_of(process: ForkServerProcess, output: Path) -> list[int]:
    """Their process ids, once both have started."""
    files = [output / "pid0", output / "pid1"]
    wait_until(lambda: process.exitcode is not None or all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_ctrl_c_ends_every_rank(launch, tmp_path):
    process = launch("endless")
    ranks = ranks_of(process, tmp_path / "run")

    psutil.Process(process.pid).send_signal(signal.SIGINT)

    assert ended(process) == 128 + signal.SIGINT
    assert not any(map(alive, ranks))
    assert "ended by SIGINT, as asked" in (tmp_path / "stderr").read_text().splitlines()[-1]


def test_a_killed_launcher_leaves_no_rank_behind(launch, tmp_path):
    process = launch("endless")
    ranks = ranks_of(process, tmp_path / "run")
    torchrun = psutil.Process(ranks[0]).ppid()

    process.kill()
    process.join()

    wait_until(lambda: not any(map(alive, [*ranks, torchrun])))


def test_ranks_have_longer_to_save_than_torchx_would_give_them_or_until_told_again(launch, tmp_path):
    process = launch("slow to save")
    ranks = ranks_of(process, tmp_path / "run")

    process.terminate()
    wait_until(lambda: all((tmp_path / f"run/told{rank}").exists() for rank in (0, 1)))
    time.sleep(11)  # torchx: 10
    assert process.exitcode is None
    assert all(map(alive, ranks))
    process.terminate()

    assert ended(process) == 128 + signal.SIGTERM
    assert not any(map(alive, ranks))


def test_a_run_that_fails_before_it_writes_leaves_its_output_free(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise SystemExit(2)

    monkeypatch.setattr(local, "_train_in_processes", fail)
    config = Config(output=str(tmp_path / "run"))
    config.trainer.devices = 2

    with pytest.raises(SystemExit):
        local.launch_local(config)

    assert not (tmp_path / "run").exists()


def test_a_run_that_fails_later_keeps_what_it_wrote(tmp_path, monkeypatch):
    def write_then_fail(file: Path, *_: object) -> None:
        file.with_name("metrics.jsonl").write_text("{}")
        raise SystemExit(1)

    monkeypatch.setattr(local, "_train_in_processes", write_then_fail)
    config = Config(output=str(tmp_path / "run"))
    config.trainer.devices = 2

    with pytest.raises(SystemExit):
        local.launch_local(config)

    assert {file.name for file in (tmp_path / "run").iterdir()} == {"config.yaml", "job.json", "metrics.jsonl"}
