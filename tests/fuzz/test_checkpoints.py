"""Damaged checkpoints: read, or refused in one line; nothing runs, nothing is written, memory is bounded."""

from pathlib import Path

import pytest

from tests import jobs
from tests.ranks import on_ranks
from tests.runs import TINY, VOCABULARY

COUNTS = {
    "weights/.metadata": 500,
    "weights/common.pt": 200,
    "weights/__0_0.distcp": 300,
    "weights/metadata.json": 150,
    "context/model.yaml": 250,
    "checksums.json": 150,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzzed")
    on_ranks(jobs.initial, 1, TINY, VOCABULARY, folder / "hf", folder / "nemo")
    return folder / "nemo"


@pytest.mark.parametrize("name", COUNTS)
def test_a_damaged_file_of_a_checkpoint_is_read_or_refused_in_one_line(name: str, checkpoint: Path) -> None:
    [counted] = on_ranks(jobs.fuzz_checkpoint, 1, checkpoint, name, COUNTS[name])
    assert sum(counted.values()) == COUNTS[name]
    assert counted["refused"] > COUNTS[name] / 4
