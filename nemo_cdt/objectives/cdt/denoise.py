"""Context denoising: which tokens are noise (Eq. 2) and how far their embeddings move (Eq. 3). torch only.

Shapes, as suffixes: S positions on this rank, B rows of the micro-batch, H hidden size, N segments (the documents or
rows over which one threshold holds). Sequence first, as Megatron lays its embedding out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_cdt.objectives.cdt.settings import Normalization

AllReduce = Callable[[Tensor], None]
"""Sums a tensor in place over the ranks that share a sequence."""


@dataclass(kw_only=True, slots=True)
class Denoising:
    """How a noise token's gradient g becomes its shift, with E its embedding:

    gradient   ``- lr * beta * g``                    Eq. 3; ``step_size`` is lr * beta
    epsilon    ``- epsilon / (1 + ||g||) * g``        bounded, as in the authors' trainer
    relative   ``- rho * ||E|| / ||g|| * g``          the same share of E at any length, model and label count
    """

    normalization: Normalization = Normalization.gradient
    epsilon: float = 1e-3
    rho: float = 0.01


@dataclass(kw_only=True, slots=True)
class Segments:
    """The sets of tokens over each of which one threshold is the mean.

    index_SB: int64, the segment of each position on this rank; ``len(count_N)`` where it belongs to none.
    real_SB: bool, False for padding, which is never noise.
    count_N: float64, the number of positions in each whole segment, on all ranks together.
    """

    index_SB: Tensor
    real_SB: Tensor
    count_N: Tensor


def scores(grad_SBH: Tensor) -> Tensor:
    """s_i = ||g_i||_2 in fp32, [S, B]."""
    return torch.linalg.vector_norm(grad_SBH, dim=-1, dtype=torch.float32)


def thresholds(score_SB: Tensor, segments: Segments, all_reduce: AllReduce) -> Tensor:
    """t = mean of s_i over each segment, float64 [N]. ``all_reduce`` must span every rank that holds a part of it.

    Summed in float64, so that the order of summation, and with it the layout, does not move a token over the threshold.
    """
    member_NSB = segments.index_SB == torch.arange(len(segments.count_N), device=score_SB.device)[:, None, None]
    total_N = torch.where(member_NSB, score_SB.double(), 0.0).sum(dim=(1, 2))
    all_reduce(total_N)
    return total_N / segments.count_N.clamp(min=1)


def noise_mask(score_SB: Tensor, threshold_N: Tensor, segments: Segments) -> Tensor:
    """I(x_i) = s_i < t, bool [S, B] (Eq. 2)."""
    bar_N = torch.cat([threshold_N, threshold_N.new_zeros(1)])  # below the bar of no segment lies nothing
    return (score_SB < bar_N[segments.index_SB]) & segments.real_SB


def shift(
    grad_SBH: Tensor, score_SB: Tensor, noise_SB: Tensor, embedding_SBH: Tensor, step_size: float, how: Denoising
) -> Tensor:
    """E' - E (Eq. 3), fp32 [S, B, H]; zero where a token is no noise. ``step_size`` is lr * beta."""
    if how.normalization is Normalization.gradient:
        factor_SB = torch.full_like(score_SB, step_size)
    elif how.normalization is Normalization.epsilon:
        factor_SB = how.epsilon / (1 + score_SB)
    else:
        length_SB = torch.linalg.vector_norm(embedding_SBH, dim=-1, dtype=torch.float32)
        factor_SB = torch.where(score_SB > 0, how.rho * length_SB / score_SB, 0.0)
    return torch.where(noise_SB, -factor_SB, 0.0).unsqueeze(-1) * grad_SBH.float()


@dataclass(kw_only=True, slots=True)
class ShiftStatistics:
    """What one denoising did, as sums over this rank's positions, so that ranks and micro-batches simply add."""

    tokens: Tensor
    noise: Tensor
    relative_shift: Tensor  # sum over noise tokens of ||E' - E|| / ||E||, before rounding
    changed: Tensor  # elements of real tokens' embeddings that E' changes at the model's precision

    def sums(self) -> Tensor:
        return torch.stack([self.tokens, self.noise, self.relative_shift, self.changed])


def shift_statistics(embedding_SBH: Tensor, shift_SBH: Tensor, noise_SB: Tensor, real_SB: Tensor) -> ShiftStatistics:
    """Measures a shift, and what is left of it once it is added and rounded to the embedding's own dtype."""
    moved_SBH = (embedding_SBH + shift_SBH.to(embedding_SBH.dtype)) - embedding_SBH
    length_SB = torch.linalg.vector_norm(embedding_SBH, dim=-1, dtype=torch.float32)
    ratio_SB = torch.linalg.vector_norm(shift_SBH, dim=-1, dtype=torch.float32) / length_SB.clamp(min=1e-30)
    return ShiftStatistics(
        tokens=real_SB.sum().double(),
        noise=noise_SB.sum().double(),
        relative_shift=torch.where(noise_SB, ratio_SB, 0.0).sum(dtype=torch.float64),
        changed=torch.count_nonzero(moved_SBH).double(),
    )
