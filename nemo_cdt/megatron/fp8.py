"""Passes in FP8. Approximate: a token near the threshold may fall on its other side (docs/results/)."""

from collections.abc import Iterator
from contextlib import contextmanager

from megatron.core import parallel_state


@contextmanager
def in_fp8() -> Iterator[None]:
    """The layers' linear products inside are of 8 bits, scaled by each tensor's present maximum: no state, no history.

    Attention, norms, the embedding and the head stay as they are. Enclose the backward too: Megatron computes again
    there what it does not keep.
    """
    from transformer_engine.common.recipe import Float8CurrentScaling
    from transformer_engine.pytorch import fp8_autocast

    group = parallel_state.get_amax_reduction_group(with_context_parallel=True)
    with fp8_autocast(enabled=True, fp8_recipe=Float8CurrentScaling(), fp8_group=group):
        yield


def unsupported() -> str | None:
    """Why this device has no FP8; None where it has."""
    try:
        from transformer_engine.pytorch.fp8 import FP8GlobalStateManager
    except ImportError:
        return "Transformer Engine is not installed"
    available, reason = FP8GlobalStateManager.is_fp8_available()
    return None if available else str(reason).rstrip(".")
