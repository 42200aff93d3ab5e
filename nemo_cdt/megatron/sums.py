"""What a step did, as sums that ranks and micro-batches add up to, and how long it took."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.profiler import record_function

Moment = float | torch.cuda.Event


class StepSums:
    """Named sums, and the time of what runs in :meth:`timed`, until :meth:`take`."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._sums: Tensor | None = None
        self._spans: list[tuple[Moment, Moment]] = []

    def add(self, **sums: Tensor) -> None:
        """To those that are named; they stay on the device."""
        zero = next(iter(sums.values())).new_zeros((), dtype=torch.float64)
        stacked = torch.stack([sums[name].detach().double() if name in sums else zero for name in self.names])
        self._sums = stacked if self._sums is None else self._sums + stacked

    @contextmanager
    def timed(self, mark: str) -> Iterator[None]:
        """Adds the time inside, without waiting for the device; ``mark`` is its name in traces."""
        start = now()
        try:
            with record_function(mark):
                yield
        finally:
            self._spans.append((start, now()))

    def take(self) -> tuple[dict[str, float], float]:
        """The step's sums over all ranks, by name, and this rank's time in seconds; then starts afresh.

        Ranks that hold copies of the same tokens count them again, which no ratio of two sums notices. The one place
        where a step waits for the device.
        """
        sums = self._sums
        if sums is None:
            sums = torch.zeros(len(self.names), dtype=torch.float64, device=torch.cuda.current_device())
        torch.distributed.all_reduce(sums)
        seconds = sum(elapsed(start, end) for start, end in self._spans)
        self._sums, self._spans = None, []
        return dict(zip(self.names, sums.tolist(), strict=True)), seconds


def now() -> Moment:
    """On the device, where there is one: when it has done what it was given so far."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def elapsed(start: Moment, end: Moment) -> float:
    """Seconds; waits for ``end``."""
    if isinstance(start, float):
        assert isinstance(end, float)
        return end - start
    assert not isinstance(end, float)
    end.synchronize()
    return start.elapsed_time(end) / 1000
