"""``metrics.jsonl``: one line a step, appended, for people and for :mod:`nemo_cdt.report`."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from nemo_cdt.utils.atomic_write import new_file
from nemo_cdt.utils.reading import metrics_row, read_lines


def append(path: Path, step: int, figures: Mapping[str, float]) -> None:
    """The figures of the step that is the ``step``-th."""
    row = {"step": step} | {name: _finite(value) for name, value in figures.items()}
    # through no link: what a run writes is in its own folder
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def drop_after(path: Path, step: int) -> None:
    """Drops the rows after ``step``, which will be written anew, and those that a killed attempt left torn."""
    if not path.exists():
        return
    with new_file(path) as partial, partial.open("xb") as file:
        for _, line in read_lines(path):
            row = metrics_row(line, path) if line.endswith(b"\n") else None
            if row is not None and row["step"] <= step:
                file.write(line)


def _finite(number: float) -> float | str:
    """JSON has no NaN: a number that is none is written as its name."""
    return number if math.isfinite(number) else str(number)
