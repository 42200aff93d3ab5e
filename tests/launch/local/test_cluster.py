# ruff: noqa: F811  a fixture that is imported is an argument too
"""A run of this machine's processes: started again, and seen from another terminal."""

import time
from pathlib import Path

import pytest

from nemo_cdt.config.launcher import Launcher
from nemo_cdt.launch.jobs import cancel, logs, recall, status
from tests.launch.local.test_run import ended, launch  # noqa: F401


def test_a_rank_that_fails_once_is_started_again(launch, tmp_path):
    assert ended(launch("fragile", launcher=Launcher(max_restarts=1))) == 0, (tmp_path / "stderr").read_text()
    assert (tmp_path / "stdout").read_text().count("rank 1 of 2") == 2


def test_a_running_run_is_seen_and_cancelled_from_elsewhere(launch, tmp_path, capsys):
    process = launch("endless")
    wait_for(tmp_path / "run/pid1")
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1}\n{"st')

    assert status(tmp_path / "run") == 0
    assert f"process {process.pid} runs, 0 of 100 steps saved" in capsys.readouterr().out
    logs(tmp_path / "run", following=False)
    assert capsys.readouterr().out == '{"step": 1}\n'

    cancel(tmp_path / "run")
    ended(process)
    capsys.readouterr()

    assert status(tmp_path / "run") == 1
    assert "ended early, 0 of 100 steps saved" in capsys.readouterr().out
    with pytest.raises(ValueError, match="does not run"):
        cancel(tmp_path / "run")


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 240
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_folder_of_a_sweep_names_its_points(tmp_path):
    for point in ("a=1", "a=2"):
        (tmp_path / point).mkdir()
        (tmp_path / point / "job.json").write_text("{}")

    with pytest.raises(ValueError, match=rf"is a sweep: give one of its points, {tmp_path}/a=1, {tmp_path}/a=2"):
        recall(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, "has no job.json"), ("{", "job.json: it is no JSON"), ("{}", "job.json: it has no launcher")],
)
def test_a_folder_without_a_job_is_one_line(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "job.json").write_text(text)

    with pytest.raises(ValueError, match=expected):
        recall(tmp_path)
