"""Reads a NeMo checkpoint folder: ``weights/`` in Megatron's distributed format, ``context/`` beside it.

The format names weights as Transformer Engine's layers do, whichever layers saved them, keeps those of all layers in
one tensor [layers, ...], and is independent of the layout (TP, PP, DP) that saved or will load it.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from nemo_cdt.checkpoint.architecture import require_possible
from nemo_cdt.checkpoint.unpickling import Reader, read_metadata, weights_only
from nemo_cdt.checkpoint.weights import Shape, megatron_shapes, require
from nemo_cdt.config import Family, Model, RopeScaling, RopeType
from nemo_cdt.utils.reading import FileError, blamed_on, entry, read_yaml

PREFIX = "module."
EMBEDDING = "embedding.word_embeddings.weight"
LINEAR = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")
"""A layer's linear modules."""
QK_NORMS = ("self_attention.q_layernorm", "self_attention.k_layernorm")

REQUIRED = {
    "normalization": "RMSNorm",
    "layernorm_zero_centered_gamma": False,
    "gated_linear_unit": True,
    "activation_func": {"_target_": "torch.nn.functional.silu", "_call_": False},
    "add_bias_linear": False,
    "multi_latent_attention": False,
    "num_moe_experts": None,
    "window_attn_skip_freq": None,
    "softmax_scale": None,
    "softmax_type": "vanilla",
    "position_embedding_type": "rope",
    "rotary_percent": 1.0,
    "rotary_interleaved": False,
    "seq_len_interpolation_factor": None,
}
"""What Hugging Face's families take for granted, as NeMo's config says it."""


def read_model(checkpoint: Path, base: Path | None = None) -> Model:
    """The architecture in ``context/``, with the vocabulary size of the embedding that was saved.

    base: the checkpoint that has the embedding, where that is another.

    Raises:
        ValueError: for what is no finished NeMo checkpoint, or one of a model that is of no :class:`Family`.
    """
    saved, config = _saved(base or checkpoint), read_context(checkpoint)["config"]
    if missing := [name for name in ("num_attention_heads", "rotary_base") if name not in config]:
        raise ValueError(f"{checkpoint} holds none of {', '.join(Family)}: its config has no {missing[0]}")
    wrong = [name for name, value in REQUIRED.items() if config.get(name, value) != value]
    wrong += [] if _is_causal(config.get("window_size")) else ["window_size"]
    if wrong:
        raise ValueError(f"{checkpoint} holds none of {', '.join(Family)}: its {wrong[0]} is {config[wrong[0]]}")
    if EMBEDDING not in saved:
        raise ValueError(f"{checkpoint}: {EMBEDDING} is missing")
    with blamed_on(checkpoint / "context/model.yaml"):
        model = _model(checkpoint, config, saved)
        require_possible(model)
    return model


def _model(checkpoint: Path, config: dict[str, Any], saved: Mapping[str, TensorStorageMetadata]) -> Model:
    return Model(
        name=checkpoint.resolve().name,
        family=_family(config),
        num_layers=config["num_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["ffn_hidden_size"],
        num_attention_heads=config["num_attention_heads"],
        num_query_groups=config.get("num_query_groups") or config["num_attention_heads"],
        head_dim=config.get("kv_channels"),
        qkv_bias=config.get("add_qkv_bias", False),
        qk_norm=config.get("qk_layernorm", False),
        sliding_window=config["window_size"][0] + 1 if config.get("window_size") else None,
        attention_dropout=config["attention_dropout"],
        hidden_dropout=config["hidden_dropout"],
        vocab_size=saved[EMBEDDING].size[0],  # NeMo may leave it to the tokenizer, and pad it
        max_positions=config["seq_length"],
        rotary_base=float(config["rotary_base"]),
        rope_scaling=_rope_scaling(config),
        norm_epsilon=config["layernorm_epsilon"],
        init_std=config["init_method_std"],
        tied_embeddings=config["share_embeddings_and_output_weights"],
        fp32_residual=config["fp32_residual_connection"],
    )


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
            raise ValueError((str(error).strip().splitlines() or [type(error).__name__])[0]) from error
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


def read_context(checkpoint: Path) -> dict[str, Any]:
    """The arguments that NeMo's model was made with, its ``config`` among them, as plain values."""
    path = checkpoint / "context/model.yaml"
    try:
        found = read_yaml(path)
        if not isinstance(found, dict):
            raise FileError(f"{path} holds no keys")
        return found | {"config": entry(found, "config", dict, path)}
    except FileError as error:
        raise FileError(
            f"{checkpoint} has no readable context/model.yaml, which says what model it is: {error}"
        ) from error


def _is_causal(window: list[int] | None) -> bool:
    return window is None or (window[0] >= 0 and window[1] == 0)


def _family(config: dict[str, Any]) -> Family:
    """That of our own config; NeMo's configs of these families differ in what they compute."""
    if "family" in config:
        return Family(config["family"])
    if config.get("qk_layernorm") or config.get("add_qkv_bias"):
        return Family.qwen3 if config.get("qk_layernorm") else Family.qwen2
    return Family.mistral if config.get("window_size") else Family.llama


def _rope_scaling(config: dict[str, Any]) -> RopeScaling:
    """As our own config has it, or NeMo's of Llama 3.1."""
    if scaling := config.get("rope_scaling"):
        return RopeScaling(**scaling)
    if "scale_factor" not in config:
        return RopeScaling(rope_type=RopeType.none)
    return RopeScaling(
        factor=config["scale_factor"],
        low_freq_factor=config["low_freq_factor"],
        high_freq_factor=config["high_freq_factor"],
        original_max_position_embeddings=config["old_context_len"],
    )
