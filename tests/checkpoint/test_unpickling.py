# ruff: noqa: F811  a fixture that is imported is an argument too
"""A checkpoint with somebody's code in it: whatever reads it refuses it in one line, or never looks there."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_cdt.config import Init
from tests import jobs
from tests.checkpoint.planted import (
    PLANTS,
    Payload,
    in_io_json,
    in_metadata,
    in_metadata_as_a_change_of_a_class,
    in_model_yaml,
)
from tests.nemo.test_resume import begun, constant, documents, three_steps  # noqa: F401
from tests.ranks import on_ranks
from tests.runs import TINY, VOCABULARY, small_run

Plant = Callable[[Path, Payload], None]
NEVER_READ = {in_io_json}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NeMo checkpoint without an optimizer, as convert writes it."""
    folder = tmp_path_factory.mktemp("whole")
    on_ranks(jobs.initial, 1, TINY, VOCABULARY, folder / "hf", folder / "nemo")
    return folder / "nemo"


@pytest.fixture
def executed(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def planted(source: Path, folder: Path, plant: Plant, executed: Path) -> Path:
    """A copy with a payload, and without the checksums, which would tell."""
    copy = shutil.copytree(source, folder)
    plant(copy, Payload(executed))
    (copy / "checksums.json").unlink()
    return copy


def test_the_payload_runs_where_nothing_keeps_it_from_it(whole: Path, executed: Path, tmp_path: Path) -> None:
    copy = planted(whole, tmp_path / "planted", in_metadata, executed)
    pickle.loads((copy / "weights/.metadata").read_bytes())
    assert executed.exists()


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_code_in_a_checkpoint_does_not_run_when_it_is_converted(
    plant: Plant, whole: Path, executed: Path, tmp_path: Path
) -> None:
    copy = planted(whole, tmp_path / "planted", plant, executed)
    refused(plant, lambda: on_ranks(jobs.converted, 1, copy, tmp_path / "hf"))
    assert not executed.exists()
    assert plant is not in_metadata_as_a_change_of_a_class or (tmp_path / "victim").read_text() == "keep"
    assert (tmp_path / "hf").exists() == (plant in NEVER_READ)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_code_in_a_checkpoint_does_not_run_when_a_run_starts_from_it(
    plant: Plant,
    whole: Path,
    executed: Path,
    documents: Path,
    tmp_path: Path,
) -> None:
    copy = planted(whole, tmp_path / "planted", plant, executed)
    config = small_run(tmp_path / "run", documents, steps=1, init=Init(nemo=str(copy)))
    refused(plant, lambda: on_ranks(jobs.train, 1, config))
    assert not executed.exists()


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_code_in_a_checkpoint_does_not_run_when_a_run_resumes_from_it(
    plant: Plant,
    begun: Path,
    executed: Path,
    documents: Path,
) -> None:
    folder = begun / "checkpoints"
    planted(folder / "step=3", folder / "step=5", plant, executed)
    for step in (2, 3):  # a run of before there were checksums
        (folder / f"step={step}/checksums.json").unlink()
    on_ranks(jobs.train_each, 1, constant(begun, documents, resume=True))
    assert not executed.exists()
    assert (folder / "step=5-damaged").exists() == (plant not in (in_io_json, in_model_yaml))  # no resume reads these


def refused(plant: Plant, act: Callable[[], Any]) -> None:
    if plant in NEVER_READ:
        act()
        return
    with pytest.raises(RuntimeError) as raised:
        act()
    last = str(raised.value).strip().splitlines()[-1]
    assert "Error: " in last
    assert "planted" in last
    assert "weights_only" not in last
