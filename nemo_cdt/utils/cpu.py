"""Real NeMo and real Megatron-Core on a machine without a GPU.

Megatron and NeMo hard-code CUDA in some forty places: ``device="cuda"``, ``torch.cuda.current_device()``,
``param.type() == "torch.cuda.FloatTensor"``, streams, the CUDA RNG tracker. Their arithmetic and their communication
(over gloo) need none of it. Inside ``with cuda_on_cpu():`` the CPU answers those calls; outside nothing is changed.

Never imported where a GPU trains. It does not speed anything up and emulates no kernel: what needs Transformer Engine
or a fused CUDA op must be switched off in the model config (:mod:`nemo_cdt.nemo.model`).
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


@contextmanager
def cuda_on_cpu() -> Iterator[None]:
    """Answer CUDA calls with the CPU inside the block. Enter it before ``megatron`` or ``nemo`` are first used.

    Raises:
        ValueError: where a GPU is visible, since answering for it would hide it.
    """
    if torch.cuda.is_available():
        raise ValueError(
            "cuda_on_cpu() on a machine with a GPU; set trainer.accelerator=gpu, or CUDA_VISIBLE_DEVICES=''"
        )
    import megatron.core.tensor_parallel.random as megatron_random

    with ExitStack() as undo:
        for name, answer in _CUDA.items():
            undo.enter_context(patch.object(torch.cuda, name, answer))
        undo.enter_context(patch.object(torch.cuda.random, "get_rng_state", _get_rng_state))
        undo.enter_context(patch.object(torch.cuda.random, "set_rng_state", _set_rng_state))
        undo.enter_context(patch.object(torch.cuda.nvtx, "range_push", _nothing))
        undo.enter_context(patch.object(torch.cuda.nvtx, "range_pop", _nothing))
        undo.enter_context(patch.object(torch.nn.Module, "cuda", lambda self, *_, **__: self))
        undo.enter_context(patch.object(megatron_random, "_get_cuda_rng_state", _get_rng_state))
        undo.enter_context(patch.object(megatron_random, "_set_cuda_rng_state", _set_rng_state))
        undo.enter_context(_OnCpu())
        _of_the_front_end(undo)
        yield


def _of_the_front_end(undo: ExitStack) -> None:
    """Whichever of the two is installed."""
    if find_spec("megatron.bridge") is not None:
        _of_bridge(undo)
    if find_spec("nemo") is not None:
        from nemo.lightning.io import pl

        # It moves what lies on another GPU, and needs an index for that.
        undo.enter_context(patch.object(pl, "_fix_tensors_device", lambda checkpoint: checkpoint))


def _of_bridge(undo: ExitStack) -> None:
    from nemo_cdt.utils.without_te import import_bridge

    import_bridge()
    from megatron.bridge.training import setup

    begin = functools.partial(setup.initialize_megatron, allow_no_cuda=True)
    undo.enter_context(patch.object(setup, "initialize_megatron", begin))
    undo.enter_context(patch.object(setup, "set_jit_fusion_options", _nothing))  # warms up what is compiled
    barrier = torch.distributed.barrier
    undo.enter_context(patch.object(torch.distributed, "barrier", lambda group=None, **_: barrier(group=group)))


class _OnCpu(TorchFunctionMode):
    """Sends every tensor that is asked for on CUDA to the CPU."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # Megatron's optimizers sort parameters by this string and refuse any that is not of CUDA.
            return func(*args).replace("torch.", "torch.cuda.")
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], CPU, *args[2:])
        if kwargs:
            kwargs = {k: CPU if k == "device" and _is_cuda(v) else v for k, v in kwargs.items() if k != "pin_memory"}
        return func(*args, **(kwargs or {}))


def _is_cuda(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, int) and not isinstance(device, bool)


class _Stream:
    """A stream on which everything has already happened."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_stream(self, *_: Any) -> None: ...
    def wait_event(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...
    def record_event(self, *_: Any) -> "_Event":
        return _Event()


class _Event:
    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def wait(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True


def _nothing(*_: Any, **__: Any) -> None: ...


def _zero(*_: Any, **__: Any) -> int:
    return 0


def _get_rng_state(*_: Any, **__: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
    torch.set_rng_state(state)


_CUDA: dict[str, Any] = {
    "device_count": lambda: 1,  # NeMo seeds Megatron's RNG tracker only where it sees a device
    "current_device": lambda: CPU,  # a device, not an index: backward functions run where the mode below is off
    "is_initialized": lambda: True,  # NeMo asserts it when it restores a checkpoint
    "set_device": _nothing,
    "synchronize": _nothing,
    "empty_cache": _nothing,
    "Stream": _Stream,
    "Event": _Event,
    "current_stream": lambda *_: _Stream(),
    "default_stream": lambda *_: _Stream(),
    "stream": lambda _: nullcontext(),
    "is_current_stream_capturing": lambda: False,
    "memory_allocated": _zero,
    "max_memory_allocated": _zero,
    "memory_reserved": _zero,
    "max_memory_reserved": _zero,
    "reset_peak_memory_stats": _nothing,
    "manual_seed": torch.manual_seed,
    "get_rng_state": _get_rng_state,
    "set_rng_state": _set_rng_state,
    "_lazy_init": _nothing,
    "_lazy_call": lambda call, **_: call(),
}
