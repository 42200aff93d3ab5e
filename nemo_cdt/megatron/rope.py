"""RoPE beyond the length it was trained for: Llama 3.1's scaling and YaRN (https://arxiv.org/abs/2309.00071).

Both divide slow rotations by a factor and leave fast ones as they are. YaRN also scales queries and keys, by one
number each, which :func:`softmax_scale` leaves to attention: Megatron's fused RoPE kernel would drop it, and its own
YaRN embedding is wrong for packed documents under context parallelism.
"""

import math

import torch
from torch import Tensor

from nemo_cdt.config import RopeScaling, RopeType


def scaled(inv_freq_R: Tensor, base: float, scaling: RopeScaling) -> Tensor:
    """Radians a position that each of R rotations turns by, from those of plain RoPE with this ``base``; fp32 [R]."""
    kept_R = (_kept_by_llama3 if scaling.rope_type is RopeType.llama3 else _kept_by_yarn)(inv_freq_R, base, scaling)
    return inv_freq_R * kept_R + inv_freq_R / scaling.factor * (1 - kept_R)


def softmax_scale(head_size: int, scaling: RopeScaling) -> float | None:
    """By what attention multiplies its scores; None is its own ``1 / sqrt(head_size)``."""
    if scaling.rope_type is RopeType.llama3:
        return None
    factor = scaling.attention_factor
    if factor is None:
        factor = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    return factor**2 / math.sqrt(head_size)


def _kept_by_llama3(inv_freq_R: Tensor, _base: float, scaling: RopeScaling) -> Tensor:
    """1 where a rotation turns ``high_freq_factor`` times within the original length, 0 below ``low_freq_factor``."""
    turns_R = scaling.original_max_position_embeddings * inv_freq_R / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return ((turns_R - low) / (high - low)).clamp(0, 1)


def _kept_by_yarn(inv_freq_R: Tensor, base: float, scaling: RopeScaling) -> Tensor:
    """1 up to the rotation that turns ``beta_fast`` times within the original length, 0 from that of ``beta_slow``."""
    size = 2 * len(inv_freq_R)

    def rotation(turns: float) -> float:
        return size * math.log(scaling.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(base))

    first = max(math.floor(rotation(scaling.beta_fast)), 0)
    last = min(math.ceil(rotation(scaling.beta_slow)), size - 1)
    index_R = torch.arange(len(inv_freq_R), dtype=torch.float32, device=inv_freq_R.device)
    return 1 - ((index_R - first) / max(last - first, 1e-3)).clamp(0, 1)
