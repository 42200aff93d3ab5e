"""The progress of a run: one bar in a terminal, a line now and then elsewhere; a line of every validation."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
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


class Progress(L.callbacks.ProgressBar):
    """Comes after the callbacks that log, so that a step is shown with its own figures."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = True
        self._bar: tqdm | None = None

    def disable(self) -> None:
        """Lightning calls it on every rank but the first."""
        self._shown = False

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._first, self._start = trainer.global_step, time.perf_counter()
        if self._shown and sys.stderr.isatty():
            self._bar = tqdm(
                total=trainer.max_steps,
                initial=self._first,
                bar_format="{percentage:3.0f}%|{bar:16}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            )

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        done, last = trainer.global_step, trainer.max_steps
        if self._bar is not None:
            self._bar.set_postfix_str(figures(trainer.callback_metrics), refresh=False)
            self._bar.update(done - self._bar.n)
        elif self._shown and (done == last or done % max(1, last // LINES) == 0):
            left = (last - done) * (time.perf_counter() - self._start) / max(1, done - self._first)
            told = figures(trainer.callback_metrics)
            print(f"step {done}/{last}  {told}  ETA {tqdm.format_interval(left)}", flush=True)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.sanity_checking or not self._shown:
            return
        told = figures(trainer.callback_metrics, VALIDATED)
        line = f"validation after step {trainer.global_step}/{trainer.max_steps}  {told}"
        self._bar.write(line, file=sys.stderr) if self._bar is not None else print(line, flush=True)

    def teardown(self, *_: Any, **__: Any) -> None:
        """Also after an exception: what is printed then stands below the bar."""
        if self._bar is not None:
            self._bar.close()


def figures(metrics: Mapping[str, Any], which: Mapping[str, tuple[str, str]] = FIGURES) -> str:
    shown = {name: form.format(float(metrics[key])) for name, (key, form) in which.items() if key in metrics}
    return "  ".join(f"{name} {value}" for name, value in shown.items())
