"""Sums that are taken while a checkpoint is written are those of the files on disk."""

import io
import json
import re
from pathlib import Path

import pytest
from xxhash import xxh3_128

from nemo_cdt.checkpoint.checksums import CHECKSUMS, EDITABLE, _Summing, compare, write_checksums
from nemo_cdt.checkpoint.sums import Sum, sum_of
from nemo_cdt.config import Parallel
from tests import jobs
from tests.ranks import on_ranks
from tests.resuming import run, train
from tests.runs import TINY, VOCABULARY, write_documents


def listed(checkpoint: Path) -> dict[str, dict]:
    return json.loads((checkpoint / CHECKSUMS).read_text())["files"]


def assert_all_files_are_listed(checkpoint: Path) -> None:
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != CHECKSUMS]
    expected = {}
    for path in files:
        data = path.read_bytes()
        expected[str(path.relative_to(checkpoint))] = {"bytes": len(data), "sum": xxh3_128(data).hexdigest()}
    assert listed(checkpoint) == expected


@pytest.mark.parametrize("devices", [1, 2])
def test_every_file_of_a_runs_checkpoint_has_its_sum(devices: int, tmp_path: Path) -> None:
    write_documents(tmp_path / "d.jsonl", kind="sft", count=40, longest=60)
    config = run(tmp_path / "run", tmp_path / "d.jsonl", steps=2, devices=devices)
    config.parallel = Parallel(tensor=devices)
    train(config)

    assert (
        len([name for name in listed(tmp_path / "run/checkpoints/step=2") if name.endswith(".distcp")]) == 2 * devices
    )
    assert_all_files_are_listed(tmp_path / "run/checkpoints/step=2")


def test_a_converted_checkpoint_has_them_too(tmp_path: Path) -> None:
    on_ranks(jobs.initial, 1, TINY, VOCABULARY, tmp_path / "hf", tmp_path / "nemo")
    assert_all_files_are_listed(tmp_path / "nemo")


def test_what_megatron_writes_is_not_read_back(tmp_path: Path) -> None:
    """Else a 70B's terabyte would be read once more at each save."""
    on_ranks(jobs.initial, 1, TINY, VOCABULARY, tmp_path / "hf", tmp_path / "first")
    [read_back] = on_ranks(jobs.convert_and_count, 1, tmp_path / "hf", tmp_path / "nemo")
    assert read_back
    assert not [name for name in read_back if name.endswith(".distcp")]


def test_a_sum_is_of_what_was_written_in_order(tmp_path: Path) -> None:
    told: list[Sum] = []
    with io.BufferedWriter(_Summing(str(tmp_path / "file"), told.append), 16) as file:
        for part in (b"a" * 5, b"b" * 40, memoryview(b"c" * 3), bytearray(7)):
            file.write(part)
        assert file.tell() == 55
    assert told == [sum_of(tmp_path / "file")]


def test_what_was_written_elsewhere_has_none(tmp_path: Path) -> None:
    told: list[Sum] = []
    with io.BufferedWriter(_Summing(str(tmp_path / "file"), told.append), 16) as file:
        file.write(b"a" * 40)
        file.seek(3)
        file.write(b"b")
    assert not told
    assert (tmp_path / "file").read_bytes() == b"aaab" + b"a" * 36


def test_what_is_meant_to_be_edited_has_none(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / EDITABLE).write_text("{}")
    (tmp_path / "weights/common.pt").write_text("x")
    write_checksums(tmp_path, {})
    (tmp_path / EDITABLE).write_text('{"model_ckpt_path": "elsewhere"}')
    compare(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "checksums.json: it must hold a JSON object"),
        ("{}", "checksums.json: it has no algorithm"),
        ('{"algorithm": "md5", "files": {}}', "checksums.json: its algorithm is 'md5', but only xxh3_128 is known"),
        (
            '{"algorithm": "xxh3_128", "files": {"../x": {"bytes": 1, "sum": "a"}}}',
            "it lists '../x', which is not in its",
        ),
        ('{"algorithm": "xxh3_128", "files": {"x": {"bytes": 1}}}', "checksums.json: x: it has no sum"),
        ('{"algorithm": "xxh3_128", "files": {"x": {"bytes": 1, "sum": "a"}}}', "x: it is missing"),
    ],
)
def test_a_bad_list_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / CHECKSUMS).write_text(text)
    (tmp_path / "weights").mkdir()
    with pytest.raises(ValueError, match=re.escape(expected)):
        compare(tmp_path)
