"""``metrics.jsonl``, as a Lightning logger writes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from nemo_cdt import metrics_file

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
        metrics_file.drop_after(self.path, step)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        figures, done = named(metrics, step)
        if figures:
            metrics_file.append(self.path, done, figures)

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The configuration is in ``config.yaml``."""
