"""LOGO's preference loss: SimPO with several rejected answers to one prompt. torch only.

Tang et al., "LOGO: Long cOntext aliGnment via efficient preference Optimization" (2024). With p_c and p_j the mean
log-probability of a token of the chosen answer and of the M rejected ones:

    d = p_c - 1/M sum_j p_j
    L = -log sigmoid(beta * (d - margin)) - sft_weight * p_c            margin is SimPO's gamma / beta

One preference is one row, its chosen answer first; the mean over a batch is that over its preferences.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(kw_only=True, slots=True)
class Preference:
    beta: float = 10.0
    margin: float = 0.3
    sft_weight: float = 0.1

    def loss(self, mean_K: Tensor) -> Tensor:
        """L of the answers' mean log-probabilities, the chosen one's first."""
        return -F.logsigmoid(self.beta * (advantage(mean_K) - self.margin)) - self.sft_weight * mean_K[0]

    def loss_and_gradient(self, mean_K: Tensor) -> tuple[Tensor, Tensor]:
        """L and dL/dp of each answer."""
        with torch.enable_grad():
            leaf_K = mean_K.detach().requires_grad_()
            loss = self.loss(leaf_K)
            return loss.detach(), torch.autograd.grad(loss, leaf_K)[0]


def advantage(mean_K: Tensor) -> Tensor:
    """d: above 0 where the chosen answer is the likelier one."""
    return mean_K[0] - mean_K[1:].mean()
