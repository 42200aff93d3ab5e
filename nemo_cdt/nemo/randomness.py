"""The states of every random generator of a run. NeMo 2.7 saves none."""

import random
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import get_cuda_rng_tracker


def states() -> dict[str, Any]:
    """Those of all ranks, with the layout they belong to. Collective."""
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, _mine())
    return {"layout": _layout(), "ranks": everyone}


def restore(saved: dict[str, Any]) -> None:
    """This rank's. Another layout has no use for them and goes on with those that the seed gave it."""
    if saved["layout"] != _layout():
        return
    mine = saved["ranks"][torch.distributed.get_rank()]
    version, numbers, gauss = mine["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = mine["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(mine["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(mine["cuda"])
    get_cuda_rng_tracker().set_states(mine["megatron"])


def _mine() -> dict[str, Any]:
    """Plain values and tensors: torch loads nothing else from a checkpoint."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "megatron": get_cuda_rng_tracker().get_states(),
    }


def _layout() -> list[int]:
    return [
        torch.distributed.get_world_size(),
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_context_parallel_world_size(),
    ]
