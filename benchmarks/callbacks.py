"""Callbacks that measure training steps. Imports NeMo: only inside :func:`benchmarks.runs.devices`."""

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import lightning.pytorch as L
import torch
from nemo.lightning.megatron_parallel import MegatronStep

from benchmarks.measured import Row, on_gpu, peak_memory_gib, reset_peak_memory, synchronize
from nemo_cdt.config import Recompute
from nemo_cdt.megatron.sums import Moment, elapsed, now
from nemo_cdt.nemo.callback import ObjectiveCallback, WrappedStep
from nemo_cdt.objectives import Objective


class Steps(L.Callback):
    """Keeps what every step took, the device's work included, and what it logged.

    First of the trainer's callbacks, so that the others count too; ``after`` goes last.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.after = _After(self)

    def on_train_batch_start(self, *_: Any) -> None:
        reset_peak_memory()
        synchronize()
        self.start = time.perf_counter()


class _After(L.Callback):
    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        synchronize()
        seconds = time.perf_counter() - self.steps.start
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.steps.rows.append(metrics | {"seconds": seconds, "peak_memory_gib": peak_memory_gib()})


class Alternating(ObjectiveCallback):
    """Denoises in every other step and leaves the rest plain: the same weights, memory and clocks for both.

    The last step of each kind is for counting the host's synchronisations with the device: it is slowed down by it.
    """

    def __init__(
        self,
        objective: Objective,
        observer: Callable | None = None,
        recompute: Recompute | None = None,
        fp8: bool = False,
        *,
        steps: int = 0,
        deadline: float = math.inf,
    ) -> None:
        """deadline: of ``time.monotonic``; training ends with the first pair of steps behind it.

        NeMo records the arguments of a callback's class and its base alike: hence the base's own, and defaults.
        """
        super().__init__(objective, observer, recompute, fp8)
        self.deadline = deadline
        self.kinds = ["cdt", "plain"] * (steps // 2)
        self.step = -1
        self.delta_spans: list[tuple[Moment, Moment]] = []
        self.synchronisations: dict[str, Counter[str] | None] = {}

    @property
    def kind(self) -> str:
        return self.kinds[self.step]

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_fit_start(trainer, pl_module)
        detector: Any = getattr(self.objective, "detector")  # noqa: B009  CDT's, which is what these steps train with
        shift = detector.shift

        def timed_shift(*arguments: Any) -> torch.Tensor:
            start = now()
            made = shift(*arguments)
            self.delta_spans.append((start, now()))
            return made

        detector.shift = timed_shift

    def delta_seconds(self) -> list[float]:
        return [elapsed(start, end) for start, end in self.delta_spans]

    def on_megatron_step_start(self, step: MegatronStep) -> MegatronStep:
        self.step += 1
        if self.step >= len(self.kinds) - 2:
            return WrappedStep(**{f.name: getattr(step, f.name) for f in fields(MegatronStep)}, wrap=self._counted)
        return step if self.kind == "plain" else super().on_megatron_step_start(step)

    def on_megatron_step_end(self, step: MegatronStep) -> None:
        if self.kind == "cdt":
            super().on_megatron_step_end(step)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.should_stop = self.kind == "plain" and time.monotonic() > self.deadline

    def _counted(self, schedule: Callable) -> Callable:
        inner = schedule if self.kind == "plain" else self.objective.wrap(schedule)

        def counting(**call: Any) -> Any:
            with synchronisations() as self.synchronisations[self.kind]:
                return inner(**call)

        return counting


@contextmanager
def synchronisations() -> Iterator[Counter[str] | None]:
    """By file and line, how often the host waits for the device inside the block, as torch's debug mode sees it.

    Complete when the block ends. None without a GPU.
    """
    if not on_gpu():
        yield None
        return
    found: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines = (f"{'/'.join(w.filename.split('/')[-2:])}:{w.lineno}" for w in caught if "synchronizing" in str(w.message))
    found.update(lines)
