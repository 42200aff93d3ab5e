"""The progress of a run, as Lightning has it told."""

from typing import Any

import lightning.pytorch as L

from nemo_cdt.utils.progress import ProgressLines


class Progress(L.callbacks.ProgressBar):
    """Comes after the callbacks that log, so that a step is shown with its own figures."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = True
        self._lines: ProgressLines | None = None

    def disable(self) -> None:
        """Lightning calls it on every rank but the first."""
        self._shown = False

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self._shown:
            self._lines = ProgressLines(trainer.global_step, trainer.max_steps)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._lines is not None:
            self._lines.step(trainer.global_step, trainer.callback_metrics)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._lines is not None and not trainer.sanity_checking:
            self._lines.validated(trainer.global_step, trainer.callback_metrics)

    def teardown(self, *_: Any, **__: Any) -> None:
        """Also after an exception."""
        if self._lines is not None:
            self._lines.close()
