"""Megatron's forward-backward schedules, run more than once in a step: what an objective's schedule is made of.

A wrapper of a schedule has the schedule's signature, keyword arguments alone.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

from megatron.core.distributed import DistributedDataParallel
from megatron.core.utils import get_model_config
from torch import Tensor, nn

from nemo_cdt.megatron.microbatch import loaded

T = TypeVar("T")
ForwardStep = Callable[[Iterator, nn.Module], tuple[Tensor, Callable]]
Run = Callable[[ForwardStep, Iterator | list[Iterator], int], list]
"""The wrapped schedule of a step, whose model and settings it holds: forward step, data, number of micro-batches."""


@contextmanager
def frozen(chunks: list[nn.Module]) -> Iterator[None]:
    """No parameter wants a gradient inside the block, so no weight gradient is computed, stored or reduced.

    It must enclose the forward too: Megatron decides there whether a layer's backward computes a weight gradient.
    """
    parameters = [p for chunk in chunks for p in chunk.parameters() if p.requires_grad]
    with ExitStack() as undo:
        for chunk in chunks:
            undo.enter_context(_gathering(chunk))
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
    hooks = (
        "finalize_model_grads_func",
        "grad_sync_func",
        "param_sync_func",
        "no_sync_func",
        "grad_scale_func",
        "timers",
    )
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
def _gathering(chunk: nn.Module) -> Iterator[None]:
    """With ``overlap_param_gather`` Megatron's forward hooks refuse what is frozen: these do the same without that."""
    hooked = [
        m for m in chunk.modules() if isinstance(m, DistributedDataParallel) and m.remove_forward_pre_hook_handles
    ]
    with ExitStack() as undo:
        for ddp in hooked:
            ddp.disable_forward_pre_hook(param_sync=False)
            undo.callback(ddp.enable_forward_pre_hook)
            for module in ddp.module.modules():
                undo.callback(module.register_forward_pre_hook(partial(_gather, ddp)).remove)
        yield


def _gather(ddp: DistributedDataParallel, module: nn.Module, *_: Any) -> None:
    """Waits for the parameters of the module and has the next ones sent: once a step, in its first forward."""
    dispatched = ddp.ddp_config.align_param_gather or ddp.overlap_param_gather_with_optimizer_step
    for parameter in module.parameters(recurse=False):
        if parameter in ddp.param_to_bucket_group:
            ddp.param_to_bucket_group[parameter].finish_param_sync(skip_next_bucket_dispatch=dispatched)


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


def step_by_step(schedule: Callable[..., list]) -> Callable[..., list]:
    """``schedule``, where an item of the data iterator is all the micro-batches of a step of this rank."""

    def run(*, data_iterator: Iterator | list[Iterator], num_microbatches: int, **rest: Any) -> list:
        iterators = data_iterator if isinstance(data_iterator, list) else [data_iterator]
        columns = [loaded(next(iterator)) for iterator in iterators]
        fresh = [iter(column) for column in columns]
        return schedule(
            data_iterator=fresh if isinstance(data_iterator, list) else fresh[0],
            num_microbatches=len(columns[0]),
            **rest,
        )

    return run
