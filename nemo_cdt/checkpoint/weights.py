"""The weights of one model under Hugging Face's names and under Megatron's: every tensor, both ways, bit for bit.

Megatron keeps in one matrix what Hugging Face keeps in several. With heads N, query groups G and head dimension D:

    linear_qkv   for each group its N/G query heads, its key and its value, [G * (N/G + 2) * D, hidden]
    linear_fc1   the gate, then the up projection, [2 * ffn, hidden]

Both, and the first one's biases, are one rule (:class:`Block`). Megatron's names here are those in a distributed
checkpoint, which are Transformer Engine's: layers without it, ours among them, rename their two norms when they save
and load.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from nemo_cdt.config import Model

Shape = tuple[int, ...]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Weights(Mapping[str, Tensor]):
    """Tensors by name, each read or made anew when it is asked for, and kept by nobody: so a model streams.

    ``like`` has all of them without values, on torch's meta device.
    """

    def __init__(self, like: Mapping[str, Tensor], read: Callable[[str], Tensor]) -> None:
        self.like, self._read = like, read

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Weights":
        """Of tensors that are there already."""
        if isinstance(tensors, cls):
            return tensors
        return cls({name: tensor.to("meta") for name, tensor in tensors.items()}, tensors.__getitem__)

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: tuple(tensor.shape) for name, tensor in self.like.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.like)

    def __len__(self) -> int:
        return len(self.like)


@dataclass(frozen=True)
class Block:
    """One Megatron matrix: the rows of ``parts``, each cut into ``groups`` and dealt out group by group."""

    megatron: str
    parts: Mapping[str, Shape]
    groups: int = 1

    @property
    def shape(self) -> Shape:
        rows, columns = zip(*((shape[0], shape[1:]) for shape in self.parts.values()), strict=True)
        return (sum(rows), *columns[0])

    def merge(self, weights: Mapping[str, Tensor]) -> Tensor:
        parts = [weights[name] for name in self.parts]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([part.unflatten(0, (self.groups, -1)) for part in parts], dim=1).flatten(0, 1)

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        rows = [shape[0] // self.groups for shape in self.parts.values()]
        parts = matrix.unflatten(0, (self.groups, -1)).split(rows, dim=1)
        return {name: part.flatten(0, 1) for name, part in zip(self.parts, parts, strict=True)}


def blocks(model: Model) -> Iterator[Block]:
    """All weights of the model, in the order of its forward pass."""
    vocabulary, hidden = (model.vocab_size or 0, model.hidden_size), (model.hidden_size,)
    yield Block("embedding.word_embeddings.weight", {EMBEDDING: vocabulary})
    for layer in range(model.num_layers):
        yield from _layer(model, f"decoder.layers.{layer}.", f"model.layers.{layer}.")
    yield Block("decoder.final_layernorm.weight", {"model.norm.weight": hidden})
    if not model.tied_embeddings:
        yield Block("output_layer.weight", {HEAD: vocabulary})


def _layer(model: Model, megatron: str, hf: str) -> Iterator[Block]:
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    rows = {"q": model.query_size, "k": model.key_size, "v": model.key_size}
    attention, mlp = megatron + "self_attention.", megatron + "mlp."
    yield Block(attention + "linear_qkv.layer_norm_weight", {hf + "input_layernorm.weight": (hidden,)})
    weights = {f"{hf}self_attn.{name}_proj.weight": (size, hidden) for name, size in rows.items()}
    yield Block(attention + "linear_qkv.weight", weights, groups=model.num_query_groups)
    if model.qkv_bias:
        biases = {f"{hf}self_attn.{name}_proj.bias": (size,) for name, size in rows.items()}
        yield Block(attention + "linear_qkv.bias", biases, groups=model.num_query_groups)
    if model.qk_norm:
        for name in ("q", "k"):
            norm = {f"{hf}self_attn.{name}_norm.weight": (model.head_size,)}
            yield Block(f"{attention}{name}_layernorm.weight", norm)
    yield Block(attention + "linear_proj.weight", {hf + "self_attn.o_proj.weight": (hidden, model.query_size)})
    yield Block(mlp + "linear_fc1.layer_norm_weight", {hf + "post_attention_layernorm.weight": (hidden,)})
    gate_up = {hf + "mlp.gate_proj.weight": (ffn, hidden), hf + "mlp.up_proj.weight": (ffn, hidden)}
    yield Block(mlp + "linear_fc1.weight", gate_up)
    yield Block(mlp + "linear_fc2.weight", {hf + "mlp.down_proj.weight": (hidden, ffn)})


def huggingface_shapes(model: Model) -> dict[str, Shape]:
    return {name: shape for block in blocks(model) for name, shape in block.parts.items()}


def megatron_shapes(model: Model) -> dict[str, Shape]:
    return {block.megatron: block.shape for block in blocks(model)}


def to_megatron(weights: Mapping[str, Tensor], model: Model, where: object = "weights") -> Weights:
    """The same weights as Megatron has them.

    Raises:
        ValueError: a line that begins with ``where``, unless these are the model's weights, all of them; and when one
            is asked for that is not finite.
    """
    weights = Weights.of(weights)
    # Buffers that transformers saved until 4.31 and that the configuration determines.
    like = {name: tensor for name, tensor in weights.like.items() if not name.endswith("rotary_emb.inv_freq")}
    if model.tied_embeddings and HEAD in like:
        _require_same_head(weights, where)
        del like[HEAD]
    finite = Weights(like, lambda name: _finite(weights[name], name, where))
    require(finite.shapes, huggingface_shapes(model), where)
    named = {block.megatron: block for block in blocks(model)}
    return Weights({name: block.merge(like) for name, block in named.items()}, lambda name: named[name].merge(finite))


def _finite(tensor: Tensor, name: str, where: object) -> Tensor:
    # Both are NaN where one element is. isfinite would make five bytes an element.
    if not all(math.isfinite(end) for end in torch.aminmax(tensor)):
        raise ValueError(
            f"{where}: {name} holds NaN or infinity, which would spread to every weight: take another file"
        )
    return tensor


def _require_same_head(weights: Weights, where: object) -> None:
    """Some tools write the head of a tied model too, which is the embedding once more."""
    if EMBEDDING in weights and not torch.equal(weights[HEAD], weights[EMBEDDING]):
        raise ValueError(
            f"{where}: config.json says tie_word_embeddings=true, but {HEAD} is not {EMBEDDING}: set it to false there"
        )


def to_huggingface(weights: Mapping[str, Tensor], model: Model, where: object = "weights") -> Weights:
    """Raises ValueError, which begins with ``where``, unless these are the model's weights and all of them."""
    weights = Weights.of(weights)
    require(weights.shapes, megatron_shapes(model), where)
    named = {block.megatron: block for block in blocks(model)}
    place = {part: block.megatron for block in named.values() for part in block.parts}
    like = {part: each for name, block in named.items() for part, each in block.split(weights.like[name]).items()}

    @lru_cache(maxsize=1)  # who asks in order has each matrix read once
    def split(name: str) -> dict[str, Tensor]:
        return named[name].split(weights[name])

    return Weights(like, lambda part: split(place[part])[part])


def require(found: Mapping[str, Shape], expected: Mapping[str, Shape], where: object) -> None:
    """Raise ValueError that names the first tensor that is missing, unexpected or of the wrong shape."""
    if missing := [name for name in expected if name not in found]:
        raise ValueError(f"{where}: {missing[0]} is missing{_more(missing)}")
    if unexpected := [name for name in found if name not in expected]:
        raise ValueError(f"{where}: {unexpected[0]} is no weight of this model{_more(unexpected)}")
    if wrong := [name for name in expected if found[name] != expected[name]]:
        raise ValueError(f"{where}: {wrong[0]} is {found[wrong[0]]} and not {expected[wrong[0]]}{_more(wrong)}")


def _more(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""
