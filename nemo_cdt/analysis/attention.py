"""Attention that can be watched: fused, exact at any length, no matrix of tokens by tokens anywhere.

transformers' models look their attention function up in a registry; :data:`NAME` is ours in it. It attends as "sdpa"
does. A ``watch=`` given to the model's forward reaches it with every layer's query, key and value.

Shapes, as suffixes: B rows of a batch, H heads, G groups of heads that share a key, N tokens, D width of a head, R the
watched rows of the attention matrix.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "nemo_cdt_watched"

CHUNK = 1 << 26
"""Elements of attention rows that are in memory at a time: 256 MiB in fp32, of each of the few tensors made of them."""

BLOCK = 1024
"""Queries that attend together in a window shorter than that."""

IRRELEVANT = {
    "cache_position",
    "num_items_in_batch",
    "output_attentions",
    "output_hidden_states",
    "position_ids",
    "use_cache",
}
"""Keywords of transformers that reach an attention function and do not change what it computes."""


@dataclass(kw_only=True, slots=True)
class Call:
    """One layer's attention, of one sequence. query: [H, N, D].  key, value: [G, N, D].

    window: how many tokens, its own among them, a token attends to; None: all before it.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    window: int | None


class Watch(Protocol):
    """Sees a call and its output [1, H, N, D], and returns that output."""

    def __call__(self, call: Call, output: Tensor) -> Tensor: ...


def watched_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    watch: Watch | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention as transformers calls it. ``dropout`` is passed over: an analysis has none.

    Raises:
        ValueError: for a kind of attention that this is not.
    """
    unknown = sorted(name for name, value in others.items() if value is not None and name not in IRRELEVANT)
    if attention_mask is not None:
        unknown.append("attention_mask")
    if not getattr(module, "is_causal", True):
        unknown.append("is_causal=False")
    if unknown or scaling is None:
        how = ", ".join(unknown) or "a scaling of its own"
        raise ValueError(f"{type(module).__name__} attends with {how}, which analyses do not know: {KNOWN}")
    output_BHND = _attend(query, key, value, scaling, sliding_window)
    if watch is not None:
        assert len(query) == 1, "one sequence is watched"
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        call = Call(layer=layer, query=query[0], key=key[0], value=value[0], scaling=scaling, window=sliding_window)
        output_BHND = watch(call, output_BHND)
    return output_BHND.transpose(1, 2).contiguous(), None


KNOWN = "analyze a Llama, Qwen2, Qwen3 or Mistral, or another model of plain causal softmax attention"

AttentionInterface.register(NAME, watched_attention)


def _attend(query_BHND: Tensor, key_BGND: Tensor, value_BGND: Tensor, scaling: float, window: int | None) -> Tensor:
    # Expanded rather than by enable_gqa, for which torch falls back to whole matrices in fp32 on a GPU.
    heads = query_BHND.shape[1] // key_BGND.shape[1]
    key_BHND, value_BHND = (tensor.repeat_interleave(heads, dim=1) for tensor in (key_BGND, value_BGND))
    new, every = query_BHND.shape[2], key_BHND.shape[2]
    if new == 1:  # one more token of a generation
        last = every if window is None else min(window, every)
        key_BHND, value_BHND = key_BHND[:, :, every - last :], value_BHND[:, :, every - last :]
        return scaled_dot_product_attention(query_BHND, key_BHND, value_BHND, scale=scaling)
    assert new == every, "a prompt is attended to whole"
    with _fused(query_BHND.device):
        if window is None or every <= window:
            return scaled_dot_product_attention(query_BHND, key_BHND, value_BHND, scale=scaling, is_causal=True)
        return _attend_in_windows(query_BHND, key_BHND, value_BHND, scaling, window)


def _fused(device: torch.device) -> AbstractContextManager:
    """On a GPU, never torch's own attention, which would make the whole matrix."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])


def _attend_in_windows(query_BHND: Tensor, key_BHND: Tensor, value_BHND: Tensor, scaling: float, window: int) -> Tensor:
    """Some queries at a time, each part with a mask of its own: at most twice its length squared."""
    parts, size = [], max(window, BLOCK)
    for start in range(0, query_BHND.shape[2], size):
        part = slice(start, min(start + size, query_BHND.shape[2]))
        seen = slice(max(0, start - window + 1), part.stop)
        rows, columns = (torch.arange(s.start, s.stop, device=query_BHND.device) for s in (part, seen))
        parts.append(
            scaled_dot_product_attention(
                query_BHND[:, :, part],
                key_BHND[:, :, seen],
                value_BHND[:, :, seen],
                attn_mask=attended(rows, columns, window),
                scale=scaling,
            )
        )
    return torch.cat(parts, dim=2)


def attended(rows_R: Tensor, columns_N: Tensor, window: int | None) -> Tensor:
    """Whether the token at a row sees the one at a column: bool [R, N]."""
    back_RN = rows_R[:, None] - columns_N
    return (back_RN >= 0) if window is None else (back_RN >= 0) & (back_RN < window)


def head_chunks(call: Call, rows: int) -> Iterator[tuple[int, slice, slice]]:
    """(group, its heads, watched rows): parts of the attention rows that fit :data:`CHUNK`."""
    groups, tokens = call.key.shape[:2]
    heads = call.query.shape[0] // groups
    size = max(1, CHUNK // (heads * tokens))
    for group in range(groups):
        for start in range(0, rows, size):
            yield group, slice(group * heads, (group + 1) * heads), slice(start, min(start + size, rows))


def attention_rows(query_HRD: Tensor, key_ND: Tensor, rows_R: Tensor, scaling: float, window: int | None) -> Tensor:
    """softmax(q K^T * scaling) in fp32, [H, R, N], of heads that share a key. ``rows_R``: where the queries stand."""
    columns_N = torch.arange(key_ND.shape[0], device=key_ND.device)
    logits_HRN = torch.einsum("hrd,nd->hrn", query_HRD.float(), key_ND.float()) * scaling
    return logits_HRN.masked_fill_(~attended(rows_R, columns_N, window), float("-inf")).softmax(dim=-1)
