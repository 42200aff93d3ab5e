"""A layer in plain torch: what Megatron's own local layers lack where Transformer Engine is missing.

Megatron's torch norm refuses sequence parallelism, and its attention refuses context parallelism and packed documents.
These two take part in all of them, on gloo as on NCCL. They are written to be right, not fast: where Transformer
Engine is installed its layers are used instead (:func:`layer_spec`). A checkpoint's parameters have the same names.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from nemo_cdt.megatron.context import document_of, row_positions


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm, with its weight marked so that Megatron sums its gradient over the sequence-parallel ranks."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class CausalAttention(nn.Module):
    """Causal self-attention within documents, and within a sliding window where the config has one.

    Each context-parallel rank gathers K and V and keeps its own queries. As in Megatron's own attention, dropout draws
    from the generator that differs between tensor-parallel ranks: they hold different heads.

    query [s, b, heads, d] or, packed, [s, heads, d]; key and value alike with the query groups; s positions on this
    rank, in the order of :func:`nemo_cdt.megatron.context.row_positions`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__()
        self.window = None if config.window_size is None else config.window_size[0] + 1  # it does not count the query
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.sequence_parallel = config.sequence_parallel
        self.cp_group = pg_collection.cp if pg_collection else parallel_state.get_context_parallel_group()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Returns [s, b, heads * d], or packed [s, 1, heads * d]. The mask given is not read: it is always causal."""
        if packed_seq_params is not None:
            query, key, value = (x.unsqueeze(1) for x in (query, key, value))
        mask = None
        if self.cp_group.size() > 1 or packed_seq_params is not None or self.window is not None:
            mask = self._mask(query, packed_seq_params)
            key, value = (
                gather_from_sequence_parallel_region(x.contiguous(), group=self.cp_group) for x in (key, value)
            )
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        with self._random_per_rank():
            out = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=self.dropout if self.training else 0.0,
                scale=self.scale,
                enable_gqa=True,
            )
        return out.permute(2, 0, 1, 3).flatten(2)

    def _mask(self, query: Tensor, packed: PackedSeqParams | None) -> Tensor:
        """True where a local query may attend to a gathered key, [s, s * context-parallel size]."""
        size, rank = self.cp_group.size(), self.cp_group.rank()
        boundaries = [0, query.size(0) * size] if packed is None else packed.cu_seqlens_q.tolist()
        positions = [row_positions(boundaries, size, r).to(query.device) for r in range(size)]
        mine, everyone = positions[rank], torch.cat(positions)
        edges = torch.tensor(boundaries, device=query.device)
        same_document = document_of(mine, edges)[:, None] == document_of(everyone, edges)
        distance = mine[:, None] - everyone
        mask = same_document & (distance >= 0)
        return mask if self.window is None else mask & (distance < self.window)

    def _random_per_rank(self) -> AbstractContextManager[None]:
        """With sequence parallelism Megatron's block has seen to it already."""
        return nullcontext() if self.sequence_parallel or not self.dropout else get_cuda_rng_tracker().fork()


def layer_spec(config: TransformerConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """Megatron's local layers with the norm and the attention above; NeMo's ``transformer_layer_spec``."""
    layer = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm")
    attention = layer.submodules.self_attention
    qk_norm = {"q_layernorm": RMSNorm, "k_layernorm": RMSNorm} if config.qk_layernorm else {}
    layer.submodules = replace(
        layer.submodules,
        input_layernorm=RMSNorm,
        pre_mlp_layernorm=RMSNorm,
        self_attention=ModuleSpec(
            module=attention.module,
            params=attention.params,
            submodules=replace(attention.submodules, core_attention=CausalAttention, **qk_norm),
        ),
    )
    layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=RMSNorm)
