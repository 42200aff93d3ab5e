"""LongCE: a token weighs more the more its long context helps to predict it. torch only.

Fang et al., "What is Wrong with Perplexity for Long-context Language Modeling?" (ICLR 2025), as their trainer has it
(PKU-ML/LongPPL, ``finetune/finetune.py``). For a document of tokens 0..n-1 whose labelled targets are Y, with l_j the
cross-entropy of token j after all tokens before it and s_j after those of its window alone, both of the same model in
the same step:

    w_j = min(exp(s_j - l_j), gamma)    no gradient; 1 for j < K, which have no window
    L   = 1/|Y| * sum over Y of w_j l_j                        weights are not normalised, and may be below 1

Windows begin at 0, d, 2d, ...: each is tokens [start, start + K + d) and measures its last d, so that a token is
predicted from K to K + d - 1 tokens. The document's last window may be shorter. K is ``window``, d ``stride``.

Positions are those that a model is fed: position p is token p and predicts token p + 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

UNMEASURED = -torch.inf
"""In place of s_j where token j is in no window; any cross-entropy is larger."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Window:
    """Positions start to end - 1 of a document, of which those from ``measured`` on are measured."""

    start: int
    measured: int
    end: int


def windows(fed: int, *, window: int, stride: int) -> Iterator[Window]:
    """Those of a document of ``fed`` positions, in order; none where it has ``window`` tokens or fewer."""
    for start in range(0, fed + 1 - window, stride):
        yield Window(start=start, measured=start + window - 1, end=min(start + window - 1 + stride, fed))


def weights(short: Tensor, full: Tensor, gamma: float) -> Tensor:
    """w of s and l, fp32 of one shape, without a gradient; 1 where s is :data:`UNMEASURED`."""
    with torch.no_grad():
        return torch.where(short == UNMEASURED, 1.0, (short - full).exp().clamp(max=gamma))


def weighted(loss: Tensor, weight: Tensor) -> Tensor:
    """``loss``, whose gradient is that of ``weight * loss``: what is logged stays the plain cross-entropy."""
    return _Weighted.apply(loss, weight)


class _Weighted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return grad * weight, None
