"""Runs that end early, by force or not, and go on: as if nothing had happened."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_cdt.checkpoint.exported import MARK
from nemo_cdt.checkpoint.run_id import RUN_ID
from nemo_cdt.checkpoint.steps import finished_checkpoints
from nemo_cdt.checkpoint.sums import sum_of
from nemo_cdt.checkpoint.verification import verify
from nemo_cdt.config import Config, Export, Parallel, Resharding, Schedule, save
from nemo_cdt.utils.cpu import cuda_on_cpu
from tests import jobs
from tests.llama import random_hugging_face
from tests.ranks import on_ranks, started
from tests.resuming import assert_same, checkpoints, metrics, run, train
from tests.runs import VOCABULARY, write_documents


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents") / "d.jsonl"
    write_documents(path, kind="sft", count=40, longest=60)
    return path


@pytest.fixture(scope="module")
def uninterrupted(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(run(folder, documents))
    return folder


def constant(folder: Path, documents: Path, **changes: Any) -> Config:
    """A run whose learning rate does not depend on its number of steps."""
    config = run(folder, documents, **changes)
    config.optim.schedule = Schedule.constant
    return config


def fully_reshardable(folder: Path, documents: Path, **changes: Any) -> Config:
    config = constant(folder, documents, **changes)
    config.trainer.checkpoint_resharding = Resharding.full
    return config


@pytest.fixture(scope="module")
def one_process(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one_process") / "run"
    config = constant(folder, documents)
    config.trainer.checkpoints_kept = 0
    train(config)
    return folder


@pytest.fixture(scope="module")
def three_steps(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three_steps") / "run"
    train(constant(folder, documents, steps=3))
    return folder


@pytest.fixture
def begun(three_steps: Path, tmp_path: Path) -> Path:
    """A copy of three steps of one process, to go on with."""
    return shutil.copytree(three_steps, tmp_path / "run", symlinks=True)


def test_the_newest_two_are_kept_and_the_links_name_the_last_and_the_best(uninterrupted: Path) -> None:
    assert checkpoints(uninterrupted) == {"step=4", "step=6", "last", "best"}
    assert os.readlink(uninterrupted / "checkpoints/last") == "step=6"
    assert os.readlink(uninterrupted / "checkpoints/best") == "step=6"


def test_all_checkpoints_are_kept_where_asked(one_process: Path) -> None:
    assert checkpoints(one_process) == {"step=2", "step=4", "step=6", "last", "best"}


def test_the_best_is_kept_though_it_is_old(documents: Path, tmp_path: Path) -> None:
    config = run(tmp_path / "run", documents)
    config.trainer.val_interval = 2
    config.optim.lr, config.optim.min_lr = 0.5, 0.5  # the validation loss grows with every step
    train(config)
    losses = {row["step"]: row["val_loss"] for row in metrics(tmp_path / "run") if "val_loss" in row}
    expected = min(losses, key=lambda step: losses[step])
    assert checkpoints(tmp_path / "run") == {"step=4", "step=6", f"step={expected}", "last", "best"}
    assert os.readlink(tmp_path / "run/checkpoints/best") == f"step={expected}"


def test_a_last_step_off_the_interval_is_saved_too(three_steps: Path) -> None:
    assert checkpoints(three_steps) == {"step=2", "step=3", "last", "best"}


def test_a_run_with_more_steps_goes_on_from_the_last(begun: Path, one_process: Path, documents: Path) -> None:
    train(constant(begun, documents, resume=True))
    assert_same(begun, one_process)


def train_without_optimizer_state(config: Config) -> None:
    with cuda_on_cpu():
        from nemo_cdt.nemo.strategy import SynchronizedStrategy
    SynchronizedStrategy.load_optimizer_state_dict = lambda *_: None
    jobs.train(config)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def invert(file: Path) -> None:
    """Twenty bytes of the largest tensor: it loads as another."""
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20] = bytes(255 - byte for byte in data[middle : middle + 20])
    file.write_bytes(data)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_serves(
    devices: int, process: Any, said: Any, begun: Path, one_process: Path, documents: Path, tmp_path: Path
) -> None:
    """Twenty bytes inverted load without a word, and train to another end."""
    invert(max((begun / "checkpoints/step=3/weights").glob("*.distcp"), key=lambda file: file.stat().st_size))

    if devices == 1:
        resumed = process(constant(begun, documents, resume=True))
        resumed.join(timeout=120)
        assert resumed.exitcode == 0, said()
        told = " ".join(said().split())
        assert "has changed since it was saved: its checksum is another. step=3 is set aside as" in told
        assert "step=2 is whole and is resumed" in told
        assert_same(begun, one_process)
    else:
        train(constant(begun, documents, devices=2, resume=True))

    assert checkpoints(begun) == {"step=3-damaged", "step=4", "step=6", "last", "best"}
    assert os.readlink(begun / "checkpoints/last") == "step=6"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("weights/common.pt", cut),
        ("weights/metadata.json", cut),
        ("weights/.metadata", Path.unlink),
        ("weights/__0_1.distcp", cut),
        ("weights/__0_0.distcp", Path.unlink),
        ("context/model.yaml", Path.unlink),
        ("checksums.json", cut),
    ],
)
def test_each_damaged_file_is_named_and_the_checkpoint_before_is_found(begun: Path, name: str, damage: Any) -> None:
    damage(begun / "checkpoints/step=3" / name)
    [found] = on_ranks(jobs.newest, 1, begun / "checkpoints")

    assert found["checkpoint"] == "step=2"
    assert f"step=3/{name}: " in found["said"]
    assert checkpoints(begun) == {"step=2", "step=3-damaged", "last"}
    assert os.readlink(begun / "checkpoints/last") == "step=2"


def test_where_none_is_whole_nothing_is_moved(begun: Path) -> None:
    before = checkpoints(begun)
    for step in (2, 3):
        cut(begun / f"checkpoints/step={step}/weights/common.pt")

    with pytest.raises(
        RuntimeError, match=r"none of step=3, step=2 in .* is whole, the newest because of .*common\.pt"
    ):
        on_ranks(jobs.newest, 1, begun / "checkpoints")

    assert checkpoints(begun) == before


def test_a_checkpoint_of_before_there_were_checksums_resumes(begun: Path, one_process: Path, documents: Path) -> None:
    for file in begun.glob("checkpoints/*/checksums.json"):
        file.unlink(missing_ok=True)
    train(constant(begun, documents, resume=True))
    assert_same(begun, one_process)


def test_checksums_can_be_left_out_when_loading(begun: Path, documents: Path) -> None:
    invert(max((begun / "checkpoints/step=3/weights").glob("*.distcp"), key=lambda file: file.stat().st_size))
    config = constant(begun, documents, resume=True)
    config.trainer.verify_checkpoints = False
    train(config)
    assert "step=3-damaged" not in checkpoints(begun)


def test_a_checkpoint_that_lost_its_checksums_is_damaged_where_older_ones_have_them(begun: Path) -> None:
    (begun / "checkpoints/step=3/checksums.json").unlink()
    [found] = on_ranks(jobs.newest, 1, begun / "checkpoints")
    assert found["checkpoint"] == "step=2"
    assert "step=3/checksums.json: it is missing" in found["said"]


def test_what_only_looks_unfinished_is_left_alone(begun: Path, documents: Path, tmp_path: Path) -> None:
    """NeMo takes any marker's name for its own, and follows links."""
    folder = begun / "checkpoints"
    (folder / "mine").mkdir()
    (folder / "mine-unfinished").touch()
    (tmp_path / "outside").write_text("keep")
    (folder / "x-unfinished").symlink_to(tmp_path / "outside")
    (folder / "step=1-unfinished").symlink_to(tmp_path / "outside")
    (tmp_path / "rows").write_text("keep")
    (begun / ".metrics.jsonl").symlink_to(tmp_path / "rows")
    train(constant(begun, documents, steps=4, resume=True))
    assert {"mine", "mine-unfinished", "x-unfinished"} < checkpoints(begun)
    assert [(tmp_path / name).read_text() for name in ("outside", "rows")] == ["keep", "keep"]


def test_a_copy_that_a_user_keeps_is_neither_resumed_nor_removed(
    begun: Path, one_process: Path, documents: Path
) -> None:
    shutil.copytree(begun / "checkpoints/step=2", begun / "checkpoints/step=9-mine")
    (begun / "checkpoints/step=old").mkdir()
    train(constant(begun, documents, resume=True))
    assert {"step=9-mine", "step=old"} < checkpoints(begun)
    assert_same(begun, one_process)


def test_an_optimizer_that_forgets_is_noticed(begun: Path, one_process: Path, documents: Path) -> None:
    on_ranks(train_without_optimizer_state, 1, constant(begun, documents, resume=True))
    with pytest.raises(AssertionError, match="not equal"):
        assert_same(begun, one_process)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Any]:
    """Starts a training in a process of its own, with whatever it starts in its group; ends it all at last."""
    running: list[ForkServerProcess] = []

    def start(config: Config, *held: Path) -> ForkServerProcess:
        file = Path(config.output, "config.yaml")
        save(config, file)
        running.append(started(jobs.train_on_a_slow_disk if held else jobs.train_file, tmp_path, file, *held))
        return running[-1]

    yield start
    for each in running:
        with suppress(ProcessLookupError):
            os.killpg(each.pid, signal.SIGKILL)
        each.join()


@pytest.fixture
def said(tmp_path: Path) -> Any:
    """What that process said."""
    return (tmp_path / "stderr").read_text


def wait_for(path: Path, process: ForkServerProcess) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.exitcode is None
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("moment", "left"),
    [("checkpoints/last", {"step=2"}), ("checkpoints/step=4/weights", {"step=2"})],
)
def test_a_killed_run_ends_as_if_it_had_not_been(
    moment: str, left: set[str], process: Any, uninterrupted: Path, documents: Path, tmp_path: Path
) -> None:
    """After its first checkpoint, and while it writes its second."""
    killed = process(run(tmp_path / "run", documents))
    wait_for(tmp_path / "run" / moment, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.join()
    folder = tmp_path / "run/checkpoints"
    finished = {p.name for p in folder.glob("step=?") if not Path(f"{p}-unfinished").exists()}
    assert finished == left
    assert moment != "checkpoints/step=4/weights" or (folder / "step=4-unfinished").exists()

    train(run(tmp_path / "run", documents, resume=True))

    assert checkpoints(tmp_path / "run") == checkpoints(uninterrupted)
    assert_same(tmp_path / "run", uninterrupted)


def test_sigterm_to_all_processes_saves_a_run_that_began_from_a_hugging_face_folder(
    documents: Path, tmp_path: Path
) -> None:
    """By the command, in processes of its own: those of the other tests have the writers' process from the start."""
    config = run(tmp_path / "run", documents, steps=500)
    random_hugging_face(config.model, VOCABULARY).save_pretrained(tmp_path / "hf")
    config.init.hf = str(tmp_path / "hf")
    config.trainer.checkpoint_interval = config.trainer.val_interval = 0
    save(config, tmp_path / "run/config.yaml")
    command = [sys.executable, "-m", "nemo_cdt.training", str(tmp_path / "run/config.yaml")]
    with (
        (tmp_path / "said").open("w") as said,
        subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True) as training,
    ):
        metrics_file = tmp_path / "run/metrics.jsonl"
        for _ in range(1200):
            if training.poll() is not None or (metrics_file.exists() and metrics_file.stat().st_size):
                break
            time.sleep(0.1)
        os.killpg(training.pid, signal.SIGTERM)
        code = training.wait(timeout=120)
    assert code == 143, (tmp_path / "said").read_text()
    assert "stopped by SIGTERM with" in (tmp_path / "said").read_text()
    assert (tmp_path / "run/checkpoints/last").exists()


def test_sigterm_saves_first_where_training_waits(
    process: Any, said: Any, uninterrupted: Path, documents: Path, tmp_path: Path
) -> None:
    """Sent to every process, as Slurm does, while Megatron's writers work: they finish, and so does one step more."""
    config = run(tmp_path / "run", documents)
    config.trainer.async_save = False
    preempted = process(config)
    wait_for(tmp_path / "run/checkpoints/step=4/weights", preempted)
    os.killpg(preempted.pid, signal.SIGTERM)
    preempted.join(timeout=120)

    assert preempted.exitcode == 143
    assert os.readlink(tmp_path / "run/checkpoints/last") == "step=5"
    assert "stopped by SIGTERM with 5 steps saved: resume=true goes on from there" in said()

    train(run(tmp_path / "run", documents, resume=True))
    assert_same(tmp_path / "run", uninterrupted)


@pytest.fixture
def held(process: Any, documents: Path, tmp_path: Path) -> Any:
    """A run that is at its fifth step while its checkpoint of the fourth is being written, and what holds that up."""
    hold = tmp_path / "hold"
    running = process(run(tmp_path / "run", documents), hold)
    wait_for(tmp_path / "run/checkpoints/last", running)
    hold.touch()
    while max(row["step"] for row in metrics(tmp_path / "run")) < 5:
        assert running.exitcode is None
        time.sleep(0.01)
    assert (tmp_path / "run/checkpoints/step=4-unfinished").exists()
    assert os.readlink(tmp_path / "run/checkpoints/last") == "step=2"
    return running, hold


def test_training_goes_on_while_a_checkpoint_is_written(
    held: Any, said: Any, uninterrupted: Path, tmp_path: Path
) -> None:
    training, hold = held
    hold.unlink()
    training.join(timeout=120)

    assert training.exitcode == 0, said()
    assert checkpoints(tmp_path / "run") == checkpoints(uninterrupted)
    assert_same(tmp_path / "run", uninterrupted)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["save_time"] > 0 for row in rows if "save_time" in row] == [True] * 3
    assert re.search(r"step=4 was saved in [0-9.]+ s; training waited [0-9.]+ s", said())


@pytest.mark.parametrize("alone", [False, True], ids=["with its writers", "alone"])
def test_a_run_that_is_killed_while_it_writes_goes_on_from_the_checkpoint_before(
    alone: bool, held: Any, process: Any, uninterrupted: Path, documents: Path, tmp_path: Path
) -> None:
    """Writers that outlive it find that what they write is no more."""
    training, hold = held
    (os.kill if alone else os.killpg)(training.pid, signal.SIGKILL)
    training.join()
    whole = {p.name for p in (tmp_path / "run/checkpoints").glob("step=?") if not Path(f"{p}-unfinished").exists()}
    assert whole == {"step=2"}

    resumed = process(run(tmp_path / "run", documents, resume=True))
    while (tmp_path / "run/checkpoints/step=4-unfinished").exists():
        assert resumed.exitcode is None
        time.sleep(0.001)
    hold.unlink()
    resumed.join(timeout=120)

    assert resumed.exitcode == 0
    assert checkpoints(tmp_path / "run") == checkpoints(uninterrupted)
    assert_same(tmp_path / "run", uninterrupted)


def test_sigterm_waits_for_what_is_being_written_and_saves_once_more(held: Any, said: Any, tmp_path: Path) -> None:
    training, hold = held
    os.killpg(training.pid, signal.SIGTERM)
    time.sleep(1)
    assert training.exitcode is None
    hold.unlink()
    training.join(timeout=120)

    assert training.exitcode == 143, said()
    kept = finished_checkpoints(tmp_path / "run/checkpoints")
    assert [each.name for each in kept] == ["step=4", os.readlink(tmp_path / "run/checkpoints/last")]
    for each in kept:
        verify(each)


def test_ctrl_c_says_what_is_saved(process: Any, said: Any, documents: Path, tmp_path: Path) -> None:
    interrupted = process(run(tmp_path / "run", documents, steps=600))
    wait_for(tmp_path / "run/checkpoints/last", interrupted)
    for _ in range(12):  # Python loses one that comes while it forks, as Megatron's checkpoint writer does here
        if interrupted.exitcode is None:
            os.kill(interrupted.pid, signal.SIGINT)
            interrupted.join(timeout=10)

    assert interrupted.exitcode == 130
    assert "steps saved: resume=true goes on from there" in said()


def test_a_run_that_has_all_its_steps_trains_no_more_and_exports_anew(
    process: Any, said: Any, uninterrupted: Path, documents: Path, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run", symlinks=True)
    (tmp_path / "run" / RUN_ID).write_text('{"run": "1"}')
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/of_an_earlier_attempt").touch()
    listed = {"of_an_earlier_attempt": sum_of(tmp_path / "hf/of_an_earlier_attempt")}
    (tmp_path / "hf" / MARK).write_text(json.dumps({"run": "1", "files": listed}))
    again = run(tmp_path / "run", documents, resume=True, export=Export(hf=str(tmp_path / "hf")))

    done = process(again)
    done.join(timeout=120)

    assert done.exitcode == 0, said()
    assert f"nothing to train: {tmp_path}/run/checkpoints has 6 steps, trainer.max_steps=6" in said()
    assert (tmp_path / "hf/config.json").exists()
    assert not (tmp_path / "hf/of_an_earlier_attempt").exists()
    assert metrics(tmp_path / "run") == metrics(uninterrupted)

    (tmp_path / "hf/of_the_users").touch()
    refused = process(again)
    refused.join(timeout=120)

    assert refused.exitcode == 2, said()
    assert "hf is not empty: of_the_users in it is not as this run exported it; training is done and its" in said()
    assert (tmp_path / "hf/of_the_users").exists()
    assert (tmp_path / "hf/config.json").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """OUTPUT/checkpoints with room for one checkpoint, which has 2 MiB, and not for two."""
    folder = tmp_path / "run/checkpoints"
    folder.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("async_save", [True, False], ids=["while it trains", "before it goes on"])
def test_a_full_disk_is_one_line_and_the_last_checkpoint_survives(
    async_save: bool, process: Any, said: Any, small_disk: Path, uninterrupted: Path, documents: Path, tmp_path: Path
) -> None:
    config = run(tmp_path / "run", documents)
    config.trainer.async_save = async_save
    full = process(config)
    full.join(timeout=120)

    assert full.exitcode == 2
    expected = f"error: {small_disk}/step=4 could not be saved, with 0 MiB free: make room, and set resume=true"
    assert said().splitlines()[-1] == f"{expected} to go on from step=2"
    assert not (small_disk / "step=4").exists()

    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    train(run(tmp_path / "run", documents, resume=True))
    assert_same(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize(
    "layouts",
    [
        [Parallel(tensor=2), Parallel(pipeline=2)],
        [Parallel(), Parallel(tensor=2, sequence=True)],
        [Parallel(pipeline=2), Parallel()],
    ],
    ids=["TP2-PP2", "DP2-TP2SP", "PP2-DP2"],
)
def test_a_run_goes_on_under_other_layouts(
    layouts: list[Parallel], one_process: Path, documents: Path, tmp_path: Path
) -> None:
    """From one process to two, and in these to another layout: a run leaves nothing of it in its process."""
    folder = tmp_path / "run"
    train(fully_reshardable(folder, documents, steps=2))
    train(
        *(
            fully_reshardable(folder, documents, devices=2, steps=steps, parallel=layout, resume=True)
            for steps, layout in zip((4, 6), layouts, strict=True)
        )
    )

    found, expected = metrics(folder), metrics(one_process)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for name in {"loss", "val_loss"} & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5)
    found, expected = (jobs.tensors(each / "checkpoints/step=6") for each in (folder, one_process))
    weights = [name for name in expected if name.startswith("module.")]
    assert weights
    for name in weights:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("workers", [0, 1])
def test_dealt_documents_go_on_where_they_were(workers: int, documents: Path, tmp_path: Path) -> None:
    def dealt(name: str, **changes: Any) -> Config:
        config = constant(tmp_path / name, documents, devices=2, **changes)
        config.trainer.micro_batch_size, config.trainer.global_batch_size = 1, 2
        config.data = replace(config.data, pack=True, document_length=64, seq_length=128, num_workers=workers)
        return config

    train(dealt("whole"))
    train(dealt("cut", steps=2))
    train(dealt("cut", resume=True))
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_dealt_documents_are_the_same_under_another_number_of_ranks(documents: Path, tmp_path: Path) -> None:
    def seen(devices: int, **changes: Any) -> set[tuple]:
        config = constant(tmp_path / "run", documents, devices=devices, **changes)
        config.trainer.micro_batch_size, config.trainer.global_batch_size = 1, 4
        config.data = replace(config.data, pack=True, document_length=64, seq_length=64)
        config.trainer.checkpoints_kept = 0
        rows = [row for rank in on_ranks(jobs.train, devices, config) for row in rank["detections"]]
        return {
            (row["step"], tuple(row["tokens"][row["documents"] == document].tolist()))
            for row in rows
            for document in set(row["documents"].tolist())
        }

    seen(1, steps=2)
    on_two = seen(2, resume=True)
    shutil.rmtree(tmp_path / "run")
    on_one = seen(1)
    assert on_two == {(step, tokens) for step, tokens in on_one if step >= 2}
    assert len(on_two) > 16
