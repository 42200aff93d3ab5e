"""The two passes of context denoising training inside Megatron's forward-backward schedule.

:class:`TwoPassSchedule` wraps any of Megatron's schedules and has its signature. Detection runs the same forward step
on the same micro-batch, with every parameter frozen and each label weighted by one over its document's label count:
then the gradient that reaches the embedding is dL/dE of the document's own mean loss, whatever the micro-batch count,
the layout or Megatron's own normalisation.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

from megatron.core.distributed import DistributedDataParallel
from megatron.core.tensor_parallel.random import _fork_rng
from megatron.core.utils import get_model_config
from torch import Tensor, nn

from nemo_cdt.config import Recompute
from nemo_cdt.megatron.detection import Detector
from nemo_cdt.megatron.embedding import find_embedding, shifted, watched
from nemo_cdt.megatron.fp8 import in_fp8
from nemo_cdt.megatron.microbatch import MicroBatch
from nemo_cdt.megatron.recompute import recomputing

T = TypeVar("T")
ForwardStep = Callable[[Iterator, nn.Module], tuple[Tensor, Callable]]
Run = Callable[[ForwardStep, Iterator | list[Iterator], int], list]
"""The wrapped schedule of a step, whose model and settings it holds: forward step, data, number of micro-batches."""


class TwoPassSchedule:
    """Detect, denoise, train. Forward-only calls pass through.

    Without pipeline parallelism each micro-batch is detected just before it trains, so that one delta is alive at a
    time. With it, the whole batch is detected by one schedule and trained by a second, and the first stage keeps the
    deltas of all its micro-batches: S/(CP*TP) * b * H elements of the embedding's dtype for each of them.

    schedule: the Megatron schedule to wrap.  detector: turns embedding gradients into deltas.
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
            deltas = self._detect([batch], iter, run, chunks, forward_step_func)
            with shifted(embedding, deltas):
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
        deltas = self._detect(batches, again, run, chunks, forward_step_func)
        with shifted(find_embedding(chunks), deltas):
            return run(forward_step_func, again(batches), num_microbatches)

    def _detect(
        self,
        batches: list[MicroBatch],
        iterate: Callable,
        run: Run,
        chunks: list[nn.Module],
        forward_step_func: ForwardStep,
    ) -> list[Tensor]:
        """One frozen forward and backward of ``batches``; the deltas, none on ranks without the embedding.

        What it draws, training draws again: both passes drop the same activations, and beta = 0 is plain training.

        Raises:
            RuntimeError: where no gradient reached the embedding.
        """
        embedding = find_embedding(chunks)
        deltas: dict[int, Tensor] = {}

        def denoise(index: int, leaf: Tensor) -> None:
            deltas[index] = self.detector.delta(leaf, batches[index])

        with (
            self.detector.timed(),
            frozen(chunks),
            unscheduled(chunks),
            _fork_rng(),
            recomputing(chunks, self.recompute),
            in_fp8() if self.fp8 else nullcontext(),
            watched(embedding, denoise),
        ):
            losses = run(forward_step_func, iterate([batch.for_detection() for batch in batches]), len(batches))
            self.detector.record_losses(losses, batches)
        if embedding is not None and len(deltas) < len(batches):
            raise RuntimeError("detection left no gradient on the embedding; is another hook replacing its output?")
        return [deltas[index] for index in sorted(deltas)]


@contextmanager
def frozen(chunks: list[nn.Module]) -> Iterator[None]:
    """No parameter wants a gradient inside the block, so no weight gradient is computed, stored or reduced.

    It must enclose the forward too: Megatron decides there whether a layer's backward computes a weight gradient.
    """
    parameters = [p for chunk in chunks for p in chunk.parameters() if p.requires_grad]
    with ExitStack() as undo:
        for chunk in chunks:
            undo.enter_context(_without_gather_hooks(chunk))
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)


@contextmanager
def unscheduled(chunks: list[nn.Module]) -> Iterator[None]:
    """Megatron's schedule does forward and backward only: no gradient is scaled, synchronised or finalised.

    ``no_sync_func`` matters most. A schedule within a schedule would leave its ``no_sync`` while the outer one is still
    in it, and the outer one's gradients would be reduced a micro-batch too early.
    """
    hooks = ("finalize_model_grads_func", "grad_sync_func", "param_sync_func", "no_sync_func", "grad_scale_func")
    configs = {id(config): config for config in map(get_model_config, chunks)}.values()
    saved = [(config, hook, getattr(config, hook)) for config in configs for hook in hooks]
    for config, hook, _ in saved:
        setattr(config, hook, None)
    try:
        yield
    finally:
        for config, hook, value in saved:
            setattr(config, hook, value)


@contextmanager
def _without_gather_hooks(chunk: nn.Module) -> Iterator[None]:
    """With ``overlap_param_gather`` Megatron's forward hooks refuse frozen parameters: gather now, hook again after."""
    hooked = [m for m in chunk.modules() if isinstance(m, DistributedDataParallel) and m.use_forward_hook]
    for ddp in hooked:
        ddp.disable_forward_pre_hook(param_sync=True)
    try:
        yield
    finally:
        for ddp in hooked:
            ddp.enable_forward_pre_hook()


def whole_batch(
    data_iterator: Iterator | list[Iterator], count: int, take: Callable[[Iterator], T]
) -> tuple[list[T], Callable[[Iterable[Any]], Iterator | list[Iterator]]]:
    """The next micro-batches; and what a schedule takes in place of ``data_iterator`` to see some again."""
    # Under interleaving each model chunk has an iterator of its own over the same micro-batches.
    iterators = data_iterator if isinstance(data_iterator, list) else [data_iterator]
    columns = [[take(it) for _ in range(count)] for it in iterators]

    def again(batches: Iterable[Any]) -> Iterator | list[Iterator]:
        fresh = [iter(list(batches)) for _ in iterators]
        return fresh if isinstance(data_iterator, list) else fresh[0]

    return columns[0], again


def chunks_of(model: nn.Module | list[nn.Module]) -> list[nn.Module]:
    return model if isinstance(model, list) else [model]
