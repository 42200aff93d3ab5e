"""What a step did, as sums that ranks and micro-batches add up to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.profiler import record_function

from nemo_cdt.megatron.detection import Moment, elapsed, now


class Record:
    """Named sums, and the time of what runs in :meth:`timed`, until :meth:`take`."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._sums: Tensor | None = None
        self._spans: list[tuple[Moment, Moment]] = []

    def add(self, sums: Sequence[Tensor]) -> None:
        """One for each name; they stay on the device."""
        stacked = torch.stack([value.detach().double() for value in sums])
        self._sums = stacked if self._sums is None else self._sums + stacked

    @contextmanager
    def timed(self, mark: str) -> Iterator[None]:
        """Adds the time inside, without waiting for the device; ``mark`` is its name in traces."""
        start = now()
        with record_function(mark):
            yield
        self._spans.append((start, now()))

    def take(self) -> tuple[dict[str, float], float]:
        """The step's sums over all ranks, and this rank's time in seconds; then starts afresh. Waits for the device.

        Tensor-parallel ranks count the same tokens again, which no ratio of two sums notices.
        """
        sums = self._sums
        if sums is None:
            sums = torch.zeros(len(self.names), dtype=torch.float64, device=torch.cuda.current_device())
        torch.distributed.all_reduce(sums)
        seconds = sum(elapsed(start, end) for start, end in self._spans)
        self._sums, self._spans = None, []
        return dict(zip(self.names, sums.tolist(), strict=True)), seconds
