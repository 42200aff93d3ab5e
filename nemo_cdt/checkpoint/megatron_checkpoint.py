"""Reads a NeMo checkpoint folder: ``weights/`` in Megatron's distributed format, ``context/`` beside it.

The format names weights as Transformer Engine's layers do, whichever layers saved them, keeps those of all layers in
one tensor [layers, ...], and is independent of the layout (TP, PP, DP) that saved or will load it.
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from nemo_cdt.checkpoint.unpickling import Reader, read_metadata, weights_only
from nemo_cdt.checkpoint.weights import Shape, megatron_shapes, require
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
    saved, model = _saved(base or checkpoint), nemo_context.read_model(checkpoint)
    if EMBEDDING not in saved:
        raise ValueError(f"{checkpoint}: {EMBEDDING} is missing")
    model = replace(model, vocab_size=saved[EMBEDDING].size[0])  # NeMo may leave it to the tokenizer, and pad it
    with blamed_on(checkpoint / "context/model.yaml"):
        require_possible(model)
    return model


def read_weights(checkpoint: Path, model: Model) -> dict[str, Tensor]:
    """Under the names of :mod:`~nemo_cdt.checkpoint.weights`. No optimizer is read.

    Raises:
        ValueError: unless the checkpoint holds the model's weights, all of them and nothing else.
    """
    require({name: tuple(entry.size) for name, entry in _saved(checkpoint).items()}, _stacked_shapes(model), checkpoint)
    stacked = read_tensors(checkpoint)
    return {name: _of_layer(stacked, name) for name in megatron_shapes(model)}


def read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """The model's, those of all layers in one, as they were saved."""
    stacked = {n: torch.empty(entry.size, dtype=entry.properties.dtype) for n, entry in _saved(checkpoint).items()}
    named = {PREFIX + name: tensor for name, tensor in stacked.items()}
    with blamed_on(checkpoint, "it cannot be read"), weights_only():
        try:
            dcp.load(named, storage_reader=Reader(checkpoint / "weights"), no_dist=True)
        except (CheckpointException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(first_line(error)) from error
    return stacked


def stacked_name(name: str) -> tuple[str, int | None]:
    """The tensor of all layers that holds this one, and the layer."""
    match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name)
    return (f"decoder.layers.{match[2]}", int(match[1])) if match else (name, None)


def _stacked_shapes(model: Model) -> dict[str, Shape]:
    shapes = {}
    for name, shape in megatron_shapes(model).items():
        key, layer = stacked_name(name)
        shapes[key] = shape if layer is None else (model.num_layers, *shape)
    return shapes


def _of_layer(stacked: Mapping[str, Tensor], name: str) -> Tensor:
    key, layer = stacked_name(name)
    return stacked[key] if layer is None else stacked[key][layer]


def _saved(checkpoint: Path) -> dict[str, TensorStorageMetadata]:
    """The model's tensors, without their values."""
    entries = read_metadata(checkpoint / "weights").state_dict_metadata
    tensors = {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
    return {name.removeprefix(PREFIX): entry for name, entry in tensors.items() if name.startswith(PREFIX)}
