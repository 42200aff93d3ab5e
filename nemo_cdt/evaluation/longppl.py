"""LongPPL's key tokens: those that the model predicts well, and only because of what stands far back.

    log p(x_i | all before) - log p(x_i | short context) > alpha     and     log p(x_i | all before) > beta

The short context of a token begins at the last multiple of ``window`` that is at least ``context`` tokens back.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nemo_cdt.config import KeyTokenRule


@dataclass(kw_only=True, slots=True)
class KeyTokens:
    """Of the fed tokens. ``gain_N``: how much the long context helps, nats; 0 where it is the short one.

    key_N: bool.  log_p_N: with the whole context; 0 for the first token, which nothing predicts.
    """

    gain_N: np.ndarray
    key_N: np.ndarray
    log_p_N: np.ndarray


LogProbabilities = Callable[[Tensor, int], Tensor]
"""Of rows of tokens [B, N] and a number: fp32 [B, number], of each of a row's last tokens given those before it."""


def key_tokens(
    log_probabilities: LogProbabilities, input_ids: np.ndarray, rule: KeyTokenRule, device: torch.device
) -> KeyTokens:
    """The tokens of one sequence that the model behind ``log_probabilities`` calls key."""
    ids_N = torch.as_tensor(input_ids, device=device)
    with torch.no_grad():
        log_p_N = torch.zeros(len(ids_N), device=device)
        log_p_N[1:] = log_probabilities(ids_N[None], len(ids_N) - 1)[0]
        gain_N = torch.zeros_like(log_p_N)
        for starts, length in _windows(len(ids_N), rule):
            judged = length - rule.context
            short = log_probabilities(torch.stack([ids_N[s : s + length] for s in starts]), judged)
            for start, log_p in zip(starts, short, strict=True):
                at = slice(start + rule.context, start + length)
                gain_N[at] = log_p_N[at] - log_p
    key_N = (gain_N > rule.alpha) & (log_p_N > rule.beta)
    return KeyTokens(
        gain_N=gain_N.double().cpu().numpy(), key_N=key_N.cpu().numpy(), log_p_N=log_p_N.double().cpu().numpy()
    )


def _windows(tokens: int, rule: KeyTokenRule) -> list[tuple[list[int], int]]:
    """(where windows start, their length): batches of whole ones, then one of what is left."""
    whole = rule.context + rule.window
    starts = list(range(0, max(0, tokens - rule.context), rule.window))
    full = [start for start in starts if start + whole <= tokens]
    batches = [(full[i : i + rule.batch], whole) for i in range(0, len(full), rule.batch)]
    return batches + [([start], tokens - start) for start in starts[len(full) :]]
