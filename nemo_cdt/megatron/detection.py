"""Detection under Megatron's layouts: from the embedding's gradient on this rank to the shift of Eq. 3."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.profiler import record_function

from nemo_cdt import denoise
from nemo_cdt.config import ThresholdScope
from nemo_cdt.megatron.microbatch import MicroBatch

Moment = float | torch.cuda.Event

DETECTION, DENOISING = "detection", "denoising"
"""How traces of torch's profiler mark them."""


@dataclass(kw_only=True, slots=True)
class Groups:
    """The ranks that hold parts of one sequence's embedding, and this rank's place along them."""

    sequence: ProcessGroup | None  # all of them: context parallel, and tensor parallel where the sequence is split too
    tensor: ProcessGroup | None  # only where sequence parallelism splits the embedding further

    @classmethod
    def of_megatron(cls, sequence_parallel: bool) -> "Groups":
        if sequence_parallel:
            return cls(
                sequence=parallel_state.get_tensor_and_context_parallel_group(),
                tensor=parallel_state.get_tensor_model_parallel_group(),
            )
        return cls(sequence=parallel_state.get_context_parallel_group(), tensor=None)

    def all_reduce(self, tensor: Tensor) -> None:
        if self.sequence is not None and self.sequence.size() > 1:
            torch.distributed.all_reduce(tensor, group=self.sequence)

    def share(self, tensor_SB: Tensor) -> Tensor:
        """This rank's part of a tensor that is whole along the sequence-parallel ranks."""
        if self.tensor is None:
            return tensor_SB
        return tensor_SB.chunk(self.tensor.size())[self.tensor.rank()]


@dataclass(kw_only=True, slots=True)
class Detection:
    """What detection found in one micro-batch, on this rank's positions; for pictures, analyses and tests."""

    batch: MicroBatch
    score_SB: Tensor
    noise_SB: Tensor
    threshold_N: Tensor
    delta_SBH: Tensor
    share: Callable[[Tensor], Tensor]  # cuts one of the batch's entries, sequence first, to the positions above


class Detector:
    """Makes deltas, and keeps the sums that describe a step until :meth:`take_sums`.

    step_size: called once a micro-batch; lr * beta as it is now.
    observer: is shown every detection, when set.
    """

    NAMES = (
        "tokens",
        "noise",
        "relative_shift",
        "changed",
        "threshold",
        "segments",
        "silent",
        "detection_loss",
        "documents",
    )

    def __init__(
        self,
        how: denoise.Denoising,
        scope: ThresholdScope,
        step_size: Callable[[], float],
        groups: Groups,
        observer: Callable[[Detection], None] | None = None,
    ) -> None:
        self.how = how
        self.scope = scope
        self.step_size = step_size
        self.groups = groups
        self.observer = observer
        self._sums: Tensor | None = None
        self._spans: list[tuple[Moment, Moment]] = []

    @record_function(DENOISING)
    @torch.no_grad()
    def delta(self, leaf_SBH: Tensor, batch: MicroBatch) -> Tensor:
        """E' - E in the embedding's dtype, from the gradient that detection left on the embedding's output."""
        grad_SBH = leaf_SBH.grad
        assert grad_SBH is not None
        embedding_SBH = leaf_SBH.detach()
        whole = batch.segments(self.scope)
        segments = denoise.Segments(
            index_SB=self.groups.share(whole.index_SB), real_SB=self.groups.share(whole.real_SB), count_N=whole.count_N
        )
        score_SB = denoise.scores(grad_SBH)
        threshold_N = denoise.thresholds(score_SB, segments, self.groups.all_reduce)
        noise_SB = denoise.noise_mask(score_SB, threshold_N, segments)
        delta_SBH = denoise.shift(grad_SBH, score_SB, noise_SB, embedding_SBH, self.step_size(), self.how)
        strength = denoise.strength(embedding_SBH, delta_SBH, noise_SB, segments.real_SB)
        counted_N = segments.count_N > 0
        self._add(
            torch.cat(
                [
                    strength.sums(),
                    torch.stack([threshold_N.sum(), counted_N.sum(), (counted_N & (threshold_N == 0)).sum()]),
                    threshold_N.new_zeros(2),
                ]
            )
        )
        delta_SBH = delta_SBH.to(leaf_SBH.dtype)
        if self.observer is not None:
            self.observer(
                Detection(
                    batch=batch,
                    score_SB=score_SB,
                    noise_SB=noise_SB,
                    threshold_N=threshold_N,
                    delta_SBH=delta_SBH,
                    share=self.groups.share,
                )
            )
        return delta_SBH

    def record_losses(self, losses: list[dict[str, Tensor]], batches: list[MicroBatch]) -> None:
        """Adds what the last pipeline stage's schedule returned: each micro-batch's sum of documents' mean losses.

        Under context parallelism each rank returns a part of that sum, so it counts a part of the documents.
        """
        parts = parallel_state.get_context_parallel_world_size()
        for loss, batch in zip(losses, batches, strict=bool(losses)):
            documents = torch.count_nonzero(batch["document_lengths"]).double() / parts
            total = loss["loss_sum_and_ub_size"][0].double()
            self._add(torch.cat([total.new_zeros(len(self.NAMES) - 2), torch.stack([total, documents])]))

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Adds the time inside to the step's detection time, without waiting for the device."""
        start = now()
        try:
            with record_function(DETECTION):
                yield
        finally:
            self._spans.append((start, now()))

    def take_sums(self) -> tuple[dict[str, float], float]:
        """The step's sums over all ranks, by name, and this rank's detection time in seconds; then starts afresh.

        Ranks that hold copies of the same tokens count them again, which no ratio of two sums notices. The one place
        where a step waits for the device.
        """
        sums = self._sums
        if sums is None:
            sums = torch.zeros(len(self.NAMES), dtype=torch.float64, device=torch.cuda.current_device())
        torch.distributed.all_reduce(sums)
        named = dict(zip(self.NAMES, sums.tolist(), strict=True))
        seconds = sum(elapsed(start, end) for start, end in self._spans)
        self._sums, self._spans = None, []
        return named, seconds

    def _add(self, sums: Tensor) -> None:
        self._sums = sums if self._sums is None else self._sums + sums


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
