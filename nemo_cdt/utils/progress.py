"""The progress of a run: one bar in a terminal, a line now and then elsewhere; a line of every validation."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

LINES = 50
"""About so many a run prints where there is no terminal."""

FIGURES = {
    "loss": ("reduced_train_loss", "{:.3f}"),
    "detection_loss": ("detection_loss", "{:.3f}"),
    "lr": ("lr", "{:.2g}"),
    "noise_fraction": ("noise_fraction", "{:.3f}"),
    "s/step": ("step_time", "{:.2f}"),
    "tokens/s": ("tokens_per_second", "{:,.0f}"),
}
"""What is shown of a step: name, metric and how it is written. A metric that a run does not have is left out."""

VALIDATED = {
    "loss": ("val_loss", "{:.3f}"),
    "perplexity": ("val_perplexity", "{:.3f}"),
    "longppl": ("val_longppl", "{:.3f}"),
    "accuracy": ("val_accuracy", "{:.3f}"),
}
"""Of a validation."""


class ProgressLines:
    """Of the steps from ``first`` to ``last``; made when the first begins."""

    def __init__(self, first: int, last: int) -> None:
        self._first, self._last, self._start = first, last, time.perf_counter()
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=last,
                initial=first,
                bar_format="{percentage:3.0f}%|{bar:16}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            )

    def step(self, done: int, metrics: Mapping[str, Any]) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(figures(metrics), refresh=False)
            self._bar.update(done - self._bar.n)
        elif done == self._last or done % max(1, self._last // LINES) == 0:
            left = (self._last - done) * (time.perf_counter() - self._start) / max(1, done - self._first)
            told = figures(metrics)
            print(f"step {done}/{self._last}  {told}  ETA {tqdm.format_interval(left)}", flush=True)

    def validated(self, done: int, metrics: Mapping[str, Any]) -> None:
        line = f"validation after step {done}/{self._last}  {figures(metrics, VALIDATED)}"
        self._bar.write(line, file=sys.stderr) if self._bar is not None else print(line, flush=True)

    def close(self) -> None:
        """What is printed then stands below the bar."""
        if self._bar is not None:
            self._bar.close()


def figures(metrics: Mapping[str, Any], which: Mapping[str, tuple[str, str]] = FIGURES) -> str:
    shown = {name: form.format(float(metrics[key])) for name, (key, form) in which.items() if key in metrics}
    return "  ".join(f"{name} {value}" for name, value in shown.items())
