"""The launcher with real child processes: NeMo-Run, torchrun, two ranks; only what they run is not a training."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from launchers import local
from nemo_cdt.config import Config, ObjectiveName, load, save


def start(output: Path, name: str, **values: object) -> subprocess.Popen[str]:
    """``launch`` in a process of its own, with ``tests.child`` for the training."""
    config = Config(name=name, output=str(output), report=False, **values)
    config.trainer.devices = 2
    save(config, output.with_suffix(".yaml"))
    code = f"""
        from launchers import launch, local
        from nemo_cdt.config import load
        local.TRAIN = "tests.child"
        launch(load({str(output.with_suffix(".yaml"))!r}))
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_devices_are_two_ranks_and_the_run_is_recorded_before_they_start(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    process = start(tmp_path / "run", "fine", compare_to=ObjectiveName.ce)
    out, _ = process.communicate(timeout=120)

    assert process.returncode == 0
    assert "rank 0 of 2" in out
    assert "rank 1 of 2" in out
    assert out.rstrip().endswith(f"{tmp_path}/run/pid1")
    assert load(tmp_path / "run/config.yaml").compare_to is ObjectiveName.ce
    baseline = load(tmp_path / "run/baseline/config.yaml")
    assert (baseline.objective.name, baseline.compare_to, baseline.report) == (ObjectiveName.ce, None, False)
    assert not (tmp_path / "home").exists()


def test_a_mistake_that_a_rank_names_is_the_last_line_and_exits_with_2(tmp_path):
    process = start(tmp_path / "run", "mistake")
    _, err = process.communicate(timeout=120)

    assert process.returncode == 2
    assert err.splitlines()[-1] == "error: [Errno 2] No such file or directory: '/rows/that/are/not/there.jsonl'"


def test_a_bug_in_one_rank_ends_the_run_and_shows_its_traceback(tmp_path):
    process = start(tmp_path / "run", "bug")
    out, err = process.communicate(timeout=120)

    assert process.returncode == 1
    assert "RuntimeError: a bug of rank 1" in out
    assert err.splitlines()[-1] == "error: training in 2 processes failed, for the reason above"


def test_ctrl_c_ends_every_rank(tmp_path):
    process = start(tmp_path / "run", "endless")
    files = [tmp_path / "run/pid0", tmp_path / "run/pid1"]
    deadline = time.monotonic() + 60
    while not all(file.exists() and file.read_text() for file in files) and time.monotonic() < deadline:
        time.sleep(0.2)

    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)

    assert process.returncode == 128 + signal.SIGINT
    assert not any(alive(int(file.read_text())) for file in files)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text()


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
