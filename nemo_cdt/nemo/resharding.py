"""Under which layouts a checkpoint's optimizer loads: Megatron has two formats of its state.

``fully_reshardable`` keeps it by parameter, and every rank gathers all of it to save. ``dp_reshardable`` keeps it as
the ranks have it, in buckets of many parameters: any number of ranks can share a bucket, but it must be the same one.
"""

from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing import load_content_metadata

from nemo_cdt.checkpoint.unpickling import weights_only
from nemo_cdt.config import Config

SHAPE = "nemo_cdt_shape"
SAME_BUCKETS = 40
"""Data-parallel ranks up to which Megatron cuts buckets of one size, where it reduces them while backward runs."""


def shape(config: Config) -> dict[str, Any]:
    """What decides which parameters share a bucket and which ranks a bucket, by key; the rest no resumption changes."""
    parallel = config.parallel
    return {
        "parallel.tensor": parallel.tensor,
        "parallel.pipeline": parallel.pipeline,
        "parallel.virtual_pipeline": parallel.virtual_pipeline,
        "parallel.overlap_grad_reduce": parallel.overlap_grad_reduce,
        "data parallelism": max(SAME_BUCKETS, config.data_parallel) if parallel.overlap_grad_reduce else SAME_BUCKETS,
    }


def require_loadable(checkpoint: Path, config: Config) -> None:
    """Raise ValueError, with what to set, where the optimizer's state would not load under this layout."""
    with weights_only():
        saved = load_content_metadata(str(checkpoint / "weights")) or {}
    if saved.get("distrib_optim_sharding_type") != "dp_reshardable":
        return
    here = shape(config)
    there = {key: value for key, value in saved.get(SHAPE, {}).items() if value != here.get(key)}
    if there:
        raise ValueError(
            f"{checkpoint} was saved with trainer.checkpoint_resharding=dp and {_typed(there)}, and does not load with "
            f"{_typed({key: here.get(key) for key in there})}: set {_typed(there)}, and "
            "trainer.checkpoint_resharding=full until a checkpoint is saved, which then loads under any layout"
        )


def _typed(values: dict[str, Any]) -> str:
    """As Hydra reads them."""
    return " ".join(f"{key}={'null' if value is None else str(value).lower()}" for key, value in values.items())
