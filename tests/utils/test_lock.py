"""One run at a time in an OUTPUT: seen by real processes, as POSIX locks are of processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from nemo_cdt.utils import lock
from nemo_cdt.utils.lock import LOCK, held, holder

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from nemo_cdt.utils.lock import held
output, seconds = Path(sys.argv[1]), float(sys.argv[2])
try:
    with held(output):
        (output / "alone").touch(exist_ok=False)
        print("held", flush=True)
        time.sleep(seconds)
        (output / "alone").unlink()
except ValueError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


def start(output: Path, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLD, str(output), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def holding(output: Path) -> "subprocess.Popen[str]":
    process = start(output, 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_of_starts_at_one_time_one_at_a_time_is_in(tmp_path):
    """A start fails with 1 where another is in at the same time; with 2 where it was told so."""
    codes: Counter[int] = Counter()
    for attempt in range(10):
        processes = [start(tmp_path / "a/run", 0.03 * (attempt % 3)) for _ in range(4)]
        told = [process.communicate(timeout=60)[1] for process in processes]
        codes.update(process.returncode for process in processes)
        assert {process.returncode for process in processes} <= {0, 2}, told

    assert codes[0] >= 10
    assert codes[2] > 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_who_comes_second_is_told_by_whom_where_and_since_when(tmp_path):
    first = holding(tmp_path)
    second = start(tmp_path, 0)
    _, told = second.communicate(timeout=60)

    assert holder(tmp_path) == first.pid
    first.kill()
    first.wait()
    assert second.returncode == 2
    assert told.count("\n") == 1
    assert f"output={tmp_path} is in use by process {first.pid} on {os.uname().nodename} since 2" in told
    assert f"wait for its end, nemo-cdt cancel {tmp_path}, or set another output" in told


def test_after_sigkill_the_next_is_in_at_once_though_a_child_lives_on(tmp_path):
    code = HOLD.replace("time.sleep(seconds)", "__import__('os').fork() or time.sleep(30); time.sleep(seconds)")
    first = subprocess.Popen([sys.executable, "-c", code, tmp_path, "60"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    time.sleep(0.5)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()

    first.kill()
    first.wait()
    (tmp_path / "alone").unlink()

    assert holder(tmp_path) is None
    with held(tmp_path):
        assert holder(tmp_path) == os.getpid()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    assert len(children) == 1


def test_a_process_cannot_hold_one_output_twice_and_keeps_it_when_it_has_tried(tmp_path):
    with held(tmp_path):
        with pytest.raises(ValueError, match="in use by this process already"), held(tmp_path):
            pass
        assert holder(tmp_path) == os.getpid()
        assert start(tmp_path, 0).wait(60) == 2
    assert holder(tmp_path) is None


def test_two_outputs_are_two_locks(tmp_path):
    with held(tmp_path / "run"), held(tmp_path / "run/baseline"):
        assert start(tmp_path / "run", 0).wait(60) == 2
        assert start(tmp_path / "run/baseline", 0).wait(60) == 2
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays_and_a_file_of_the_users_by_that_name_is_refused(tmp_path):
    (tmp_path / "mine").touch()
    with held(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    (tmp_path / LOCK).write_text("my own")
    with pytest.raises(ValueError, match="is no lock of a run: move it away"), held(tmp_path):
        pass
    assert (tmp_path / LOCK).read_text() == "my own"

    (tmp_path / LOCK).unlink()
    (tmp_path / "precious").write_text("")
    (tmp_path / LOCK).symlink_to("precious")
    with pytest.raises(ValueError, match="cannot be opened for the lock"), held(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == ""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 3}', "\udcff" * 9000, '{"host": "\\u001b[2J"}'])
def test_whatever_the_file_says_the_refusal_is_one_line(tmp_path, text):
    process = holding(tmp_path)
    (tmp_path / LOCK).write_bytes(text.encode("utf-8", "surrogateescape"))

    with pytest.raises(ValueError, match="is in use by another run") as raised, held(tmp_path):
        pass
    process.kill()
    process.wait()

    assert str(raised.value).isprintable()


def test_a_machine_that_died_is_waited_for(tmp_path):
    """Its lock stays until the file server notices; here a process that says it is of that machine."""
    process = holding(tmp_path)
    about = json.loads((tmp_path / LOCK).read_text())
    (tmp_path / LOCK).write_text(json.dumps(about | {"host": "another", "command": "\x1b[2Jtrain"}))

    assert holder(tmp_path) is None
    with pytest.raises(ValueError, match=r"on another since .* \(\?\[2Jtrain\)"), held(tmp_path):
        pass
    timer = threading.Timer(1.5, process.kill)
    timer.start()
    with held(tmp_path, wait=30):
        assert holder(tmp_path) == os.getpid()
    process.wait()


def test_without_locks_a_run_goes_on_with_a_warning(tmp_path, monkeypatch, capsys):
    def none(*_: object) -> None:
        raise OSError(lock.UNSUPPORTED[0], "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", none)
    with held(tmp_path):
        (tmp_path / "written").touch()

    warned = capsys.readouterr().err
    assert warned.startswith(f"warning: the file system of {tmp_path} has no locks: nothing keeps a second run out")
    assert warned.count("\n") == 1


def test_a_link_that_leads_nowhere_is_one_line(tmp_path):
    (tmp_path / "run").symlink_to("nowhere")

    with pytest.raises(ValueError, match="run is a link that leads nowhere"), held(tmp_path / "run"):
        pass
