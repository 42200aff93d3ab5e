"""Validation that also detects: what training would call noise in the micro-batches that are validated."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nemo_cdt.megatron.schedule import ForwardStep, chunks_of, whole_batch
from nemo_cdt.objectives.cdt.schedule import TwoPassSchedule


class ValidationSchedule(TwoPassSchedule):
    """A forward-only schedule, then detection of the same micro-batches for the detector's observer; trains nothing."""

    def __call__(
        self,
        *,
        forward_step_func: ForwardStep,
        data_iterator: Iterator | list[Iterator],
        model: nn.Module | list[nn.Module],
        num_microbatches: int,
        forward_only: bool = False,
        **rest: Any,
    ) -> list:
        assert forward_only, "this schedule is of validation"
        chunks = chunks_of(model)
        batches, again = whole_batch(data_iterator, num_microbatches, self.prepare)
        fixed = {"model": model, **rest}
        losses = self._runs(fixed, forward_only=True)(forward_step_func, again(batches), num_microbatches)
        with torch.enable_grad(), as_in_training(chunks):
            self._detect(batches, again, self._runs(fixed, forward_only=False), chunks, forward_step_func)
        return losses


@contextmanager
def as_in_training(chunks: list[nn.Module]) -> Iterator[None]:
    """Dropout and recomputation are those of training: Megatron recomputes nothing otherwise."""
    modes = [(module, module.training) for chunk in chunks for module in chunk.modules()]
    for chunk in chunks:
        chunk.train()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
