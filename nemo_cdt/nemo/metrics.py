"""``metrics.jsonl``: one line a step, appended, for people and for :mod:`nemo_cdt.report`."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from nemo_cdt.utils.atomic_write import new_file
from nemo_cdt.utils.reading import metrics_row, read_lines

RENAMED = {"reduced_train_loss": "loss"}
DROPPED = {"epoch", "step", "global_step", "steps", "consumed_samples", "global_batch_size"}


def named(metrics: Mapping[str, float], step: int | None) -> tuple[dict[str, float], int]:
    """Figures under the names by which they are logged, and the number of steps done by then.

    Lightning's ``step`` counts from the step's start.
    """
    return {RENAMED.get(k, k): float(v) for k, v in metrics.items() if k not in DROPPED}, int(step or 0) + 1


class JsonLinesLogger(Logger):
    """A Lightning logger that writes what is logged, under the names of the report."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def drop_after(self, step: int) -> None:
        """Drops the rows after ``step``, which will be written anew, and those that a killed attempt left torn."""
        if not self.path.exists():
            return
        with new_file(self.path) as partial, partial.open("xb") as file:
            for _, line in read_lines(self.path):
                row = metrics_row(line, self.path) if line.endswith(b"\n") else None
                if row is not None and row["step"] <= step:
                    file.write(line)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        figures, done = named(metrics, step)
        row = {"step": done} | {name: _finite(value) for name, value in figures.items()}
        if figures:
            # through no link: what a run writes is in its own folder
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            with open(os.open(self.path, flags, 0o666), "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The configuration is in ``config.yaml``."""


def _finite(number: float) -> float | str:
    """JSON has no NaN: a number that is none is written as its name."""
    return number if math.isfinite(number) else str(number)
