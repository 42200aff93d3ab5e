"""The recipe in processes of its own: what it did not make stays, whatever it is asked and however it ends."""

import json
import os
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil
import pytest

from nemo_cdt.checkpoint.exported import MARK
from nemo_cdt.config import Model
from nemo_cdt.utils.lock import LOCK
from tests.described import write_described
from tests.ranks import started

RECIPE = Path(__file__).parents[1] / "recipes/cdt_llama31.py"
TINY = (
    *("trainer.accelerator=cpu", "trainer.precision=fp32", "trainer.max_steps=2", "trainer.global_batch_size=2"),
    *("trainer.val_interval=0", "data.seq_length=640", "optim.warmup_steps=1", "compare_to=null", "report=false"),
    *("model.num_layers=1", "model.hidden_size=32", "model.ffn_hidden_size=64", "model.num_attention_heads=2"),
)
Recipe = Callable[..., ForkServerProcess]


def recipe(folder: Path, *overrides: str) -> None:
    """``python recipes/cdt_llama31.py``, in ``folder``."""
    os.chdir(folder)
    sys.argv = ["cdt_llama31.py", *TINY, *overrides]
    runpy.run_path(str(RECIPE), run_name="__main__")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Recipe]:
    running: list[ForkServerProcess] = []

    def begin(*overrides: str) -> ForkServerProcess:
        said = tmp_path / f"said{len(running)}"
        said.mkdir()
        running.append(started(recipe, said, tmp_path, *overrides))
        return running[-1]

    yield begin
    for each in running:
        each.kill()
        each.join()


@pytest.fixture
def run(start: Recipe, tmp_path: Path) -> Callable[..., tuple[int | None, str]]:
    """Its exit code, and the last line that it says on stderr."""

    def to_the_end(*overrides: str) -> tuple[int | None, str]:
        process = start(*overrides)
        process.join(timeout=240)
        said = max(tmp_path.glob("said*"), key=lambda path: int(path.name[4:])) / "stderr"
        return process.exitcode, (said.read_text().splitlines() or [""])[-1]

    return to_the_end


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_export_takes_the_place_of_nothing_but_the_runs_own(run, tmp_path):
    assert run("output=o", "export.hf=o/checkpoints")[1].startswith("error: export.hf=o/checkpoints is where the run")
    assert not (tmp_path / "o").exists()

    assert run("output=o")[0] == 0
    assert json.loads((tmp_path / "o/hf" / MARK).read_text())["files"].keys() >= {"config.json", "model.safetensors"}
    code, said = run("output=o", "export.hf=o/checkpoints", "resume=true")
    assert (code, (tmp_path / "o/checkpoints/step=2").is_dir()) == (2, True)
    assert said.startswith("error: export.hf=o/checkpoints is where the run keeps its checkpoints: set it to o/hf")

    first = (tmp_path / "o/hf").stat().st_ino
    assert run("output=o", "resume=true")[0] == 0  # its own is replaced
    assert (tmp_path / "o/hf").stat().st_ino != first
    assert (tmp_path / "o/hf/config.json").exists()

    (tmp_path / "o/hf/notes.txt").write_text("mine")
    before = contents(tmp_path / "o")
    code, said = run("output=o", "resume=true")
    assert code == 2
    assert said.startswith("error: export.hf=o/hf is not empty: notes.txt in it is not as this run exported it: ")
    assert contents(tmp_path / "o") == before


def test_a_folder_that_appears_while_the_run_trains_stays_and_the_way_on_is_said(start, tmp_path):
    process = start("output=o", "export.hf=hf", "trainer.max_steps=4")
    wait_for(tmp_path / "o/metrics.jsonl", process)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/notes.txt").write_text("mine")
    process.join(timeout=240)

    said = (tmp_path / "said0/stderr").read_text().splitlines()[-1]
    assert process.exitcode == 2, said
    assert said.startswith(f"error: export.hf={tmp_path}/hf is not empty, and no {MARK} says that notes.txt in it is")
    assert said.endswith(
        "training is done and its checkpoint is safe: `nemo-cdt convert o/checkpoints/step=4 DIR` exports it"
    )
    assert contents(tmp_path / "hf") == {"notes.txt": b"mine"}
    assert (tmp_path / "o/checkpoints/step=4").is_dir()


BAD_ROW = ("data=jsonl", "data.path=rows.jsonl", "export.hf=null")


def test_a_start_that_fails_leaves_the_users_folder_as_it_was(run, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": 3}\n')
    (tmp_path / "mine/deep").mkdir(parents=True)
    (tmp_path / "mine/deep/notes.txt").write_text("mine")

    assert "rows.jsonl:1" in run("output=mine", *BAD_ROW)[1]
    assert contents(tmp_path / "mine") == {"deep/notes.txt": b"mine"}
    assert run("output=new/run", *BAD_ROW)[0] == 2
    assert not (tmp_path / "new").exists()


def test_what_the_run_reads_is_not_written_into(run, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": 3}\n')
    assert run("output=made", "export.hf=mine/tokenizer")[0] == 0
    shutil.rmtree(tmp_path / "made")
    shutil.copytree(tmp_path / "mine/tokenizer", tmp_path / "model")
    write_described(tmp_path / "model", Model())
    before = contents(tmp_path)

    code, said = run("output=mine", "model.tokenizer=mine/tokenizer", *BAD_ROW)
    assert (code, said) == (
        2,
        "error: output=mine holds model.tokenizer=mine/tokenizer: set output to a folder of the run's own",
    )
    code, said = run("init.hf=model", "output=model", *BAD_ROW)
    assert (code, said) == (2, "error: output=model is init.hf=model: set output to a folder of the run's own")

    assert {name: data for name, data in contents(tmp_path).items() if not name.startswith("said")} == {
        name: data for name, data in before.items() if not name.startswith("said")
    }


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_start_that_is_ended_by_a_signal_removes_what_it_made(start, tmp_path, signum):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    process = start("output=mine", "trainer.max_steps=50")
    wait_for(tmp_path / "mine/job.json", process)

    psutil.Process(process.pid).send_signal(signum)
    process.join(timeout=120)

    assert process.exitcode in (128 + signum, 1)
    assert contents(tmp_path / "mine") == {"notes.txt": b"mine"}


def test_of_two_starts_at_one_time_one_trains_and_the_other_is_told(start, run, tmp_path):
    for name, pause in (("a", 0.05), ("b", 0.0)):
        processes = [start(f"output={name}", "trainer.checkpoint_interval=1", "export.hf=null")]
        time.sleep(pause)
        processes.append(start(f"output={name}", "trainer.checkpoint_interval=1", "export.hf=null"))
        for process in processes:
            process.join(timeout=240)

        assert sorted(process.exitcode for process in processes) == [0, 2]
        assert (tmp_path / name / "checkpoints/step=2").is_dir()
        assert not (tmp_path / name / LOCK).exists()
    lines = [(file / "stderr").read_text() for file in tmp_path.glob("said*")]
    told = [line for line in lines if line.startswith("error: output=")]
    assert len(told) == 2
    assert all("is in use by" in line or "already holds a run" in line for line in told)


def test_after_a_kill_the_next_start_goes_on_at_once(start, run, tmp_path):
    process = start("output=o", "trainer.max_steps=100000", "trainer.checkpoint_interval=2", "export.hf=null")
    wait_for(tmp_path / "o/checkpoints/last", process)
    code, said = run("output=o", "resume=true", "trainer.max_steps=100000", "export.hf=null")
    assert code == 2
    assert f"output=o is in use by job {process.pid} " in said

    process.kill()
    process.join()
    done = int(os.readlink(tmp_path / "o/checkpoints/last").removeprefix("step=")) + 2
    overrides = ("trainer.checkpoint_interval=2", "export.hf=null", f"trainer.max_steps={done}")
    assert run("output=o", "resume=true", *overrides)[0] == 0


def wait_for(path: Path, process: ForkServerProcess) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.exitcode is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
