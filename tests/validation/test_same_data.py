"""A run that goes on reads the data that it began with, whatever file has their name."""

import re
from pathlib import Path

import pytest

from nemo_cdt.config import Config, Data, DataName
from nemo_cdt.prepared import SUMMARY
from nemo_cdt.validation import record_data, require_same_data


def run(tmp_path: Path, name: DataName, path: str) -> Config:
    return Config(output=str(tmp_path / "run"), data=Data(name=name, path=str(tmp_path / path)))


@pytest.mark.parametrize(
    ("name", "path", "file"),
    [
        (DataName.jsonl, "rows.jsonl", "rows.jsonl"),
        (DataName.preferences, "rows.jsonl", "rows.jsonl"),
        (DataName.prepared, "prepared", f"prepared/{SUMMARY}"),
        (DataName.multihop, "texts", "texts/of/mine.txt"),
    ],
)
def test_other_rows_by_the_same_name_are_refused(tmp_path, name, path, file):
    for folder in ("run", "prepared", "texts/of"):
        (tmp_path / folder).mkdir(parents=True)
    config = run(tmp_path, name, path)
    (tmp_path / file).write_text("first\n")
    require_same_data(config)
    record_data(config)
    (tmp_path / file).write_text("first\n")
    require_same_data(config)

    (tmp_path / file).write_text("other\n")
    record_data(config)

    expected = r" holds other rows than those that the run in output=\S+ has trained on \(6 bytes, and 6 then\)"
    with pytest.raises(ValueError, match=f"data.path={re.escape(str(tmp_path / path))}.*{expected}"):
        require_same_data(config)
