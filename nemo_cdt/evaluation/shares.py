"""How well detection tells token types apart: a type's share of the critical tokens, beside its share of all."""

from collections.abc import Sequence

import numpy as np

from nemo_cdt.data.documents import TokenType

FACTS = (TokenType.supporting, TokenType.interference)
"""The token types that detection should leave alone, where the data knows them."""


def critical(score_N: np.ndarray) -> np.ndarray:
    """Bool [N]: the scores at or above their mean over the sequence (Eq. 2)."""
    return score_N >= score_N.mean()


def counted(types_N: np.ndarray) -> np.ndarray:
    """How many tokens there are of each type, [T]."""
    return np.bincount(types_N, minlength=len(TokenType))


def shares(critical_T: Sequence[float], every_T: Sequence[float]) -> dict[str, float]:
    """``critical_TYPE`` and ``base_TYPE`` of the facts; 0 where nothing was counted.

    Args:
        critical_T: how many critical tokens there are of each type.
        every_T: how many tokens.
    """
    counts = {"critical": critical_T, "base": every_T}
    totals = {name: max(1.0, float(sum(count_T))) for name, count_T in counts.items()}
    return {f"{name}_{kind.name}": float(counts[name][kind]) / totals[name] for kind in FACTS for name in counts}
