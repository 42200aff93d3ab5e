"""Writes the weights of one model in Megatron's distributed format, in one process and without a model.

Apart from :mod:`~nemo_cdt.checkpoint.megatron_checkpoint`, which reads it: Megatron takes seconds to import. Its own
saving has all tensors in memory before it writes the first; here each is read when its turn has come.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies.torch import MCoreMetadata
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from nemo_cdt.checkpoint.checksums import open_summed, write_checksums
from nemo_cdt.checkpoint.megatron_checkpoint import LINEAR, PREFIX, QK_NORMS, chunk_of, stacked_name
from nemo_cdt.checkpoint.sums import Sum
from nemo_cdt.checkpoint.unpickling import COMMON, FORMAT
from nemo_cdt.checkpoint.weights import Weights
from nemo_cdt.config import Model

THREADS = 4
"""That write at once. Each holds one tensor, and what it is made of."""

WriteContext = Callable[[Path, Model, Path], None]
"""Writes ``context/`` of a model, with the tokenizer that may be in a folder. A front end's work: it imports NeMo."""

Part = tuple[MetadataIndex, Callable[[], object]]
"""What is written at once: where it belongs, and how it is made."""


def write(
    checkpoint: Path, weights: Mapping[str, Tensor], model: Model, tokenizer: Path, write_context: WriteContext
) -> None:
    """``checkpoint`` as NeMo would save it, without an optimizer; it also loads where Transformer Engine is.

    Each layer has a file of its own, and what belongs to none the first.

    Args:
        weights: under the names of :mod:`~nemo_cdt.checkpoint.weights`. Each is asked for once, by any of the threads.
        tokenizer: a folder that may hold a tokenizer.
    """
    write_context(checkpoint / "context", model, tokenizer)
    folder = checkpoint / "weights"
    folder.mkdir()
    weights = Weights.of(weights)
    entries: dict[str, Any] = {}
    files: dict[int | None, list[Part]] = defaultdict(list)
    for name, like in weights.like.items():
        key, layer = stacked_name(name)
        chunk, size = chunk_of(name, like), like.shape if layer is None else torch.Size([model.num_layers, *like.shape])
        entry = entries.setdefault(PREFIX + key, TensorStorageMetadata(TensorProperties(like.dtype), size, []))
        entry.chunks.append(chunk)
        files[layer].append((MetadataIndex(PREFIX + key, chunk.offsets), partial(_read, weights, name, chunk.sizes)))
    for layer, key in _extra_states(model):
        entries[key] = BytesStorageMetadata()
        files[layer].append((MetadataIndex(key), lambda: [torch.empty(0, dtype=torch.uint8)]))
    sums: dict[str, Sum] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        paths = (folder / f"__0_{number}.distcp" for number in range(len(files)))
        try:
            results = [*pool.map(partial(_write_file, sums), paths, files.values())]
        except BaseException:
            for parts in files.values():
                parts.clear()  # so that the other threads end with the tensor that they write
            raise
    dcp.FileSystemWriter(folder).finish(MCoreMetadata(entries, mcore_data={}), results)
    torch.save({}, folder / COMMON)
    save_config(CheckpointingConfig(FORMAT["sharded_backend"]), str(folder))
    write_checksums(checkpoint, sums)


def _read(weights: Weights, name: str, size: torch.Size) -> Tensor:
    tensor = weights[name]
    shared = tensor.untyped_storage().nbytes() != tensor.nbytes  # by a file, all of which would be written
    return (tensor.clone() if shared else tensor).view(size)


def _extra_states(model: Model) -> Iterator[tuple[int | None, str]]:
    """Of which layers, and their keys. Empty ones: Transformer Engine's modules refuse to be loaded without."""
    for module in LINEAR + (QK_NORMS if model.qk_norm else ()):
        for layer in range(model.num_layers):
            yield layer, _key(f"decoder.layers.{module}", layer, model.num_layers)
    yield None, _key("decoder.final_layernorm", 0, 1)


def _key(module: str, place: int, places: int) -> str:
    return ShardedObject(f"{PREFIX}{module}._extra_state", None, (places,), (place,)).unique_key


def _write_file(sums: dict[str, Sum], file: Path, parts: list[Part]) -> list[WriteResult]:
    results = []
    with open_summed(str(file), lambda found: sums.update({file.name: found})) as stream:
        for index, make in parts:
            start = stream.tell()
            torch.save(make(), stream)
            place = _StorageInfo(file.name, start, stream.tell() - start)
            results.append(WriteResult(index, place.length, place))
        stream.flush()
        if parts:
            os.fsync(stream.fileno())
    return results
