"""Runs that end early, by force or not, and go on: as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from nemo_cdt.config import Config, Export, Parallel, Schedule, save
from nemo_cdt.cpu import cuda_on_cpu
from tests import jobs
from tests.ranks import on_ranks
from tests.runs import small_run, write_documents

STEPS = 6


def run(folder: Path, documents: Path, *, steps: int = STEPS, resume: bool = False, **changes: Any) -> Config:
    """Validates after steps 3 and 6, saves after 2, 4 and 6. A step is one micro-batch, as Lightning counts batches."""
    config = small_run(folder, documents, steps=steps, resume=resume, micro_batch=4, **changes)
    config.trainer.val_interval, config.trainer.checkpoint_interval = 3, 2
    config.data.validation_samples = 4
    return config


def train(config: Config) -> list[dict[str, Any]]:
    return on_ranks(jobs.train, config.trainer.world_size, config)


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


def checkpoints(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").iterdir()}


def tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every tensor in it, whole: weights, and the optimizer's."""
    reader = dcp.FileSystemReader(checkpoint / "weights")
    entries = reader.read_metadata().state_dict_metadata
    found = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, dcp.metadata.TensorStorageMetadata)
    }
    dcp.load(found, storage_reader=reader, no_dist=True)
    return {name: tensor.float().numpy() for name, tensor in found.items()}


def random_states(checkpoint: Path) -> list[dict[str, Any]]:
    common = torch.load(checkpoint / "weights/common.pt")
    return next(state for state in common["callbacks"].values() if "random" in state)["random"]["ranks"]


def metrics(folder: Path) -> list[dict[str, float]]:
    """Without what a clock measured."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "time" not in k and "second" not in k} for row in rows]


def assert_same(folder: Path, expected: Path) -> None:
    last = f"checkpoints/step={STEPS}"
    found, want = tensors(folder / last), tensors(expected / last)
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


def test_the_newest_two_are_kept_and_the_links_name_the_last_and_the_best(uninterrupted: Path) -> None:
    assert checkpoints(uninterrupted) == {"step=4", "step=6", "last", "best"}
    assert os.readlink(uninterrupted / "checkpoints/last") == "step=6"
    assert os.readlink(uninterrupted / "checkpoints/best") == "step=6"


def test_the_best_is_kept_though_it_is_old(documents: Path, tmp_path: Path) -> None:
    config = run(tmp_path / "run", documents)
    config.trainer.val_interval = 2
    config.optim.lr, config.optim.min_lr = 0.5, 0.5  # the validation loss grows with every step
    train(config)
    losses = {row["step"]: row["val_loss"] for row in metrics(tmp_path / "run") if "val_loss" in row}
    expected = min(losses, key=lambda step: losses[step])
    assert checkpoints(tmp_path / "run") == {"step=4", "step=6", f"step={expected}", "last", "best"}
    assert os.readlink(tmp_path / "run/checkpoints/best") == f"step={expected}"


def test_a_last_step_off_the_interval_is_saved_too(documents: Path, tmp_path: Path) -> None:
    train(run(tmp_path / "run", documents, steps=3))
    assert checkpoints(tmp_path / "run") == {"step=2", "step=3", "last", "best"}


def test_a_run_with_more_steps_goes_on_from_the_last(one_process: Path, documents: Path, tmp_path: Path) -> None:
    train(constant(tmp_path / "run", documents, Parallel(), devices=1, steps=3))
    train(constant(tmp_path / "run", documents, Parallel(), devices=1, resume=True))
    assert_same(tmp_path / "run", one_process)


def train_without_optimizer_state(config: Config) -> None:
    with cuda_on_cpu():
        from nemo_cdt.nemo.strategy import SynchronizedStrategy
    SynchronizedStrategy.load_optimizer_state_dict = lambda *_: None
    jobs.train(config)


def test_an_optimizer_that_forgets_is_noticed(one_process: Path, documents: Path, tmp_path: Path) -> None:
    train(constant(tmp_path / "run", documents, Parallel(), devices=1, steps=3))
    on_ranks(
        train_without_optimizer_state, 1, constant(tmp_path / "run", documents, Parallel(), devices=1, resume=True)
    )
    with pytest.raises(AssertionError, match="not equal"):
        assert_same(tmp_path / "run", one_process)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Any]:
    """Starts a training in a process of its own, with whatever it starts in its group; ends it all at last."""
    started: list[subprocess.Popen[str]] = []

    def start(config: Config) -> subprocess.Popen[str]:
        file = Path(config.output, "config.yaml")
        save(config, file)
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "nemo_cdt.nemo.train", str(file)],
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for each in started:
        with suppress(ProcessLookupError):
            os.killpg(each.pid, signal.SIGKILL)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
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
    killed.wait()
    folder = tmp_path / "run/checkpoints"
    finished = {p.name for p in folder.glob("step=?") if not Path(f"{p}-unfinished").exists()}
    assert finished == left
    assert moment != "checkpoints/step=4/weights" or (folder / "step=4-unfinished").exists()

    train(run(tmp_path / "run", documents, resume=True))

    assert checkpoints(tmp_path / "run") == checkpoints(uninterrupted)
    assert_same(tmp_path / "run", uninterrupted)


def test_sigterm_saves_first(process: Any, uninterrupted: Path, documents: Path, tmp_path: Path) -> None:
    """Sent to every process, as Slurm does, while Megatron's writers work: they finish, and so does one step more."""
    preempted = process(run(tmp_path / "run", documents))
    wait_for(tmp_path / "run/checkpoints/step=4/weights", preempted)
    os.killpg(preempted.pid, signal.SIGTERM)
    _, err = preempted.communicate(timeout=60)

    assert preempted.returncode == 143
    assert os.readlink(tmp_path / "run/checkpoints/last") == "step=5"
    assert "stopped by SIGTERM with 5 steps saved: resume=true goes on from there" in err

    train(run(tmp_path / "run", documents, resume=True))
    assert_same(tmp_path / "run", uninterrupted)


def test_a_run_that_has_all_its_steps_trains_no_more_and_exports_anew(
    process: Any, uninterrupted: Path, documents: Path, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run", symlinks=True)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/of_an_earlier_attempt").touch()

    done = process(run(tmp_path / "run", documents, resume=True, export=Export(hf=str(tmp_path / "hf"))))
    _, err = done.communicate(timeout=120)

    assert done.returncode == 0, err
    assert f"nothing to train: {tmp_path}/run/checkpoints has 6 steps, trainer.max_steps=6" in err
    assert (tmp_path / "hf/config.json").exists()
    assert not (tmp_path / "hf/of_an_earlier_attempt").exists()
    assert metrics(tmp_path / "run") == metrics(uninterrupted)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """OUTPUT/checkpoints with room for one checkpoint, which has 2 MiB, and not for two."""
    folder = tmp_path / "run/checkpoints"
    folder.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_line_and_the_last_checkpoint_survives(
    process: Any, small_disk: Path, uninterrupted: Path, documents: Path, tmp_path: Path
) -> None:
    full = process(run(tmp_path / "run", documents))
    _, err = full.communicate(timeout=120)

    assert full.returncode == 2
    expected = f"error: {small_disk}/step=4 could not be saved, with 0 MiB free: make room, and set resume=true"
    assert err.splitlines()[-1] == f"{expected} to go on from step=2"
    assert not (small_disk / "step=4").exists()

    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    train(run(tmp_path / "run", documents, resume=True))
    assert_same(tmp_path / "run", uninterrupted)


def constant(folder: Path, documents: Path, parallel: Parallel, *, devices: int, **changes: Any) -> Config:
    """A run whose learning rate does not depend on its number of steps."""
    config = run(folder, documents, parallel=parallel, **changes)
    config.optim.schedule, config.trainer.devices = Schedule.constant, devices
    config.trainer.micro_batch_size //= devices
    return config


@pytest.fixture(scope="module")
def one_process(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one_process") / "run"
    train(constant(folder, documents, Parallel(), devices=1))
    return folder


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
    """From one process to two, and to two in another layout."""
    folder = tmp_path / "run"
    train(constant(folder, documents, Parallel(), devices=1, steps=2))
    for steps, layout in zip((4, 6), layouts, strict=True):
        train(constant(folder, documents, layout, devices=2, steps=steps, resume=True))

    found, expected = metrics(folder), metrics(one_process)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for name in {"loss", "val_loss"} & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5)
    found, expected = tensors(folder / "checkpoints/step=6"), tensors(one_process / "checkpoints/step=6")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
