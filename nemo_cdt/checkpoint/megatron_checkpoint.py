"""Reads a NeMo checkpoint folder: ``weights/`` in Megatron's distributed format, ``context/`` beside it.

The format names weights as Transformer Engine's layers do, whichever layers saved them, keeps those of all layers in
one tensor [layers, ...], and is independent of the layout (TP, PP, DP) that saved or will load it.
"""

import pickle
import re
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from nemo_cdt.checkpoint.unpickling import Reader, read_metadata, weights_only
from nemo_cdt.checkpoint.weights import Shape, Weights, megatron_shapes, require
from nemo_cdt.config import Model, nemo_context
from nemo_cdt.config.architecture import require_possible
from nemo_cdt.utils.reading import blamed_on
from nemo_cdt.utils.user_errors import first_line

PREFIX = "module."
EMBEDDING = "embedding.word_embeddings.weight"
LINEAR = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")
"""A layer's linear modules."""
QK_NORMS = ("self_attention.q_layernorm", "self_attention.k_layernorm")


def read_model(checkpoint: Path, base: Path | None = None) -> Model:
    """The architecture in ``context/``, with the vocabulary size of the embedding that was saved.

    base: the checkpoint that has the embedding, where that is another.

    Raises:
        ValueError: for what is no finished NeMo checkpoint, or one of a model that is of no :class:`Family`.
    """
    saved, model = _of_model(read_metadata((base or checkpoint) / "weights")), nemo_context.read_model(checkpoint)
    if EMBEDDING not in saved:
        raise ValueError(f"{checkpoint}: {EMBEDDING} is missing")
    model = replace(model, vocab_size=saved[EMBEDDING].size[0])  # NeMo may leave it to the tokenizer, and pad it
    with blamed_on(checkpoint / "context/model.yaml"):
        require_possible(model)
    return model


def read_weights(checkpoint: Path, model: Model) -> Weights:
    """Under the names of :mod:`~nemo_cdt.checkpoint.weights`. No optimizer is read.

    Raises:
        ValueError: unless the checkpoint holds the model's weights, all of them and nothing else; and when one is asked
            for that cannot be read.
    """
    saved = SavedTensors(checkpoint)
    require(saved.shapes, _stacked_shapes(model), checkpoint)
    like = {name: saved.like(name) for name in megatron_shapes(model)}
    return Weights(like, saved.read)


class SavedTensors:
    """The model's tensors in a checkpoint, each read when it is asked for, by one thread."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint, self._reader = checkpoint, Reader(checkpoint / "weights")
        metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        self._entries = _of_model(metadata)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Those of all layers in one, as they were saved."""
        return {name: tuple(entry.size) for name, entry in self._entries.items()}

    def like(self, name: str) -> Tensor:
        """One of one layer, without values."""
        key, layer = stacked_name(name)
        entry = self._entries[key]
        size = entry.size if layer is None else entry.size[1:]
        return torch.empty(size, dtype=entry.properties.dtype, device="meta")

    def read(self, name: str) -> Tensor:
        """One of one layer, alone in its memory."""
        key, _ = stacked_name(name)
        tensor = torch.empty_like(self.like(name), device="cpu")
        wanted = chunk_of(name, tensor)
        with blamed_on(self._checkpoint, "it cannot be read"), weights_only():
            items = create_read_items_for_chunk_list(PREFIX + key, self._entries[key], [wanted])
            try:
                self._reader.read_data(LoadPlan(items), _Into(tensor.view(wanted.sizes)))
            except (AssertionError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                raise ValueError(first_line(error)) from error
        return tensor


class _Into(dcp.DefaultLoadPlanner):
    """Puts what is read into one tensor."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self._tensor = tensor

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        starts = zip(read_item.dest_offsets, read_item.lengths, strict=True)
        return self._tensor[tuple(slice(start, start + length) for start, length in starts)]


def stacked_name(name: str) -> tuple[str, int | None]:
    """The tensor of all layers that holds this one, and the layer."""
    match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name)
    return (f"decoder.layers.{match[2]}", int(match[1])) if match else (name, None)


def chunk_of(name: str, tensor: Tensor) -> ChunkStorageMetadata:
    """The place of this tensor in that of all layers."""
    _, layer = stacked_name(name)
    sizes = tensor.shape if layer is None else torch.Size([1, *tensor.shape])
    return ChunkStorageMetadata(torch.Size([layer or 0, *[0] * (len(sizes) - 1)]), sizes)


def _stacked_shapes(model: Model) -> dict[str, Shape]:
    shapes = {}
    for name, shape in megatron_shapes(model).items():
        key, layer = stacked_name(name)
        shapes[key] = shape if layer is None else (model.num_layers, *shape)
    return shapes


def _of_model(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    """The model's tensors, without their values."""
    entries = metadata.state_dict_metadata.items()
    tensors = {name: entry for name, entry in entries if isinstance(entry, TensorStorageMetadata)}
    return {name.removeprefix(PREFIX): entry for name, entry in tensors.items() if name.startswith(PREFIX)}
