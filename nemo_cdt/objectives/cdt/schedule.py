"""The two passes of context denoising training inside Megatron's forward-backward schedule.

:class:`TwoPassSchedule` wraps any of Megatron's schedules and has its signature. Detection runs the same forward step
on the same micro-batch, with every parameter frozen and each label weighted by one over its document's label count:
then the gradient that reaches the embedding is dL/dE of the document's own mean loss, whatever the micro-batch count,
the layout or Megatron's own normalisation.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

from megatron.core.tensor_parallel.random import _fork_rng
from torch import Tensor, nn

from nemo_cdt.config import Recompute
from nemo_cdt.megatron.embedding import find_embedding, shifted, watched
from nemo_cdt.megatron.fp8 import in_fp8
from nemo_cdt.megatron.marks import DETECTION
from nemo_cdt.megatron.microbatch import MicroBatch
from nemo_cdt.megatron.recompute import recomputing
from nemo_cdt.megatron.schedule import ForwardStep, Run, chunks_of, frozen, unscheduled, whole_batch
from nemo_cdt.objectives.cdt.detection import Detector


class TwoPassSchedule:
    """Detect, denoise, train. Forward-only calls pass through.

    Without pipeline parallelism each micro-batch is detected just before it trains, so that one shift is alive at a
    time. With it, the whole batch is detected by one schedule and trained by a second, and the first stage keeps the
    shifts of all its micro-batches: S/(CP*TP) * b * H elements of the embedding's dtype for each of them.

    schedule: the Megatron schedule to wrap.  detector: turns embedding gradients into shifts.
    prepare: takes the next batch off a data iterator and puts this rank's part of it on the device.
    pipelined: whether the model is split into pipeline stages.
    recompute: what detection's backward computes again; None is what training's does.
    fp8: whether detection is approximate, in FP8.
    """

    def __init__(
        self,
        schedule: Callable[..., list],
        detector: Detector,
        prepare: Callable[[Iterator], MicroBatch],
        *,
        pipelined: bool,
        recompute: Recompute | None = None,
        fp8: bool = False,
    ) -> None:
        self.schedule = schedule
        self.detector = detector
        self.prepare = prepare
        self.pipelined = pipelined
        self.recompute = recompute
        self.fp8 = fp8

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
        run = self._runs({"model": model, **rest}, forward_only=forward_only)
        if forward_only:
            return run(forward_step_func, data_iterator, num_microbatches)
        two_passes = self._batch_by_batch if self.pipelined else self._micro_batch_by_micro_batch
        return two_passes(run, chunks_of(model), forward_step_func, data_iterator, num_microbatches)

    def _runs(self, fixed: dict[str, Any], *, forward_only: bool) -> Run:
        def run(step: ForwardStep, iterator: Iterator | list[Iterator], count: int) -> list:
            return self.schedule(
                forward_step_func=step,
                data_iterator=iterator,
                num_microbatches=count,
                forward_only=forward_only,
                **fixed,
            )

        return run

    def _micro_batch_by_micro_batch(
        self,
        run: Run,
        chunks: list[nn.Module],
        forward_step_func: ForwardStep,
        data_iterator: Iterator | list[Iterator],
        num_microbatches: int,
    ) -> list:
        embedding = find_embedding(chunks)

        def detect_then_forward(iterator: Iterator, model: nn.Module) -> tuple[Tensor, Callable]:
            batch = self.prepare(iterator)
            shifts = self._detect([batch], iter, run, chunks, forward_step_func)
            with shifted(embedding, shifts):
                return forward_step_func(iter([batch]), model)

        return run(detect_then_forward, data_iterator, num_microbatches)

    def _batch_by_batch(
        self,
        run: Run,
        chunks: list[nn.Module],
        forward_step_func: ForwardStep,
        data_iterator: Iterator | list[Iterator],
        num_microbatches: int,
    ) -> list:
        batches, again = whole_batch(data_iterator, num_microbatches, self.prepare)
        shifts = self._detect(batches, again, run, chunks, forward_step_func)
        with shifted(find_embedding(chunks), shifts):
            return run(forward_step_func, again(batches), num_microbatches)

    def _detect(
        self,
        batches: list[MicroBatch],
        iterate: Callable,
        run: Run,
        chunks: list[nn.Module],
        forward_step_func: ForwardStep,
    ) -> list[Tensor]:
        """One frozen forward and backward of ``batches``; the shifts, none on ranks without the embedding.

        What it draws, training draws again: both passes drop the same activations, and beta = 0 is plain training.

        Raises:
            RuntimeError: where no gradient reached the embedding.
        """
        embedding = find_embedding(chunks)
        shifts: dict[int, Tensor] = {}

        def denoise(index: int, leaf: Tensor) -> None:
            shifts[index] = self.detector.shift(leaf, batches[index])

        with (
            self.detector.sums.timed(DETECTION),
            frozen(chunks),
            unscheduled(chunks),
            _fork_rng(),
            recomputing(chunks, self.recompute),
            in_fp8() if self.fp8 else nullcontext(),
            watched(embedding, denoise),
        ):
            forward = self._recorded(forward_step_func)
            run(forward, iterate([batch.for_detection() for batch in batches]), len(batches))
        if embedding is not None and len(shifts) < len(batches):
            raise RuntimeError("detection left no gradient on the embedding; is another hook replacing its output?")
        return [shifts[index] for index in sorted(shifts)]

    def _recorded(self, forward_step_func: ForwardStep) -> ForwardStep:
        """The same, and the detector sees the losses of the last pipeline stage: Megatron reduces them there alone."""

        def forward(iterator: Iterator, model: nn.Module) -> tuple[Tensor, Callable]:
            batch = self.prepare(iterator)
            output, reduction = forward_step_func(iter([batch]), model)

            def reduce(loss_BS: Tensor) -> Any:
                self.detector.record_loss(loss_BS, batch)
                return reduction(loss_BS)

            return output, reduce

        return forward
