"""Writes the weights of one model in Megatron's distributed format, in one process and without a model.

Apart from :mod:`~nemo_cdt.checkpoint.megatron_checkpoint`, which reads it: Megatron's saving takes seconds to import,
and asks CUDA, for which :mod:`nemo_cdt.utils.cpu` must answer on a machine without a GPU.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from torch import Tensor

from nemo_cdt.checkpoint.checksums import noted, noting, write_checksums
from nemo_cdt.checkpoint.megatron_checkpoint import LINEAR, PREFIX, QK_NORMS, stacked_name
from nemo_cdt.checkpoint.writer import start_writer
from nemo_cdt.config import Model

WriteContext = Callable[[Path, Model, Path], None]
"""Writes ``context/`` of a model, with the tokenizer that may be in a folder. A front end's work: it imports NeMo."""


def write(
    checkpoint: Path, weights: Mapping[str, Tensor], model: Model, tokenizer: Path, write_context: WriteContext
) -> None:
    """``checkpoint`` as NeMo would save it, without an optimizer; it also loads where Transformer Engine is.

    Args:
        weights: under the names of :mod:`~nemo_cdt.checkpoint.weights`.
        tokenizer: a folder that may hold a tokenizer.
    """
    # The context first: it imports NeMo, whose torch.compile at import fails once a process group was made on a CPU.
    write_context(checkpoint / "context", model, tokenizer)
    (checkpoint / "weights").mkdir()
    sharded = {name: _sharded(name, tensor, model.num_layers) for name, tensor in weights.items()}
    with tempfile.TemporaryDirectory(prefix="nemo_cdt-") as notes:
        with _one_process(), noting(notes):
            start_writer()
            dist_checkpointing.save(sharded | _extra_states(model), str(checkpoint / "weights"))
        write_checksums(checkpoint, noted(notes))


def _sharded(name: str, tensor: Tensor, layers: int) -> ShardedTensor:
    key, layer = stacked_name(name)
    if layer is None:
        return ShardedTensor.from_rank_offsets(PREFIX + key, tensor)
    return ShardedTensor.from_rank_offsets(PREFIX + key, tensor, (0, layer, layers), prepend_axis_num=1)


def _extra_states(model: Model) -> dict[str, ShardedObject]:
    """Empty ones: what Transformer Engine's modules have without FP8, and refuse to be loaded without."""
    layers, modules = model.num_layers, LINEAR + (QK_NORMS if model.qk_norm else ())
    places = [(f"{PREFIX}decoder.layers.{module}", layer, layers) for module in modules for layer in range(layers)]
    places.append((f"{PREFIX}decoder.final_layernorm", 0, 1))
    return {
        f"{module}.{index}": ShardedObject(
            f"{module}._extra_state", torch.empty(0, dtype=torch.uint8), global_shape=(size,), global_offset=(index,)
        )
        for module, index, size in places
    }


@contextmanager
def _one_process() -> Iterator[None]:
    """What Megatron's saving asks of torch.distributed, whatever this process will be part of later."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
