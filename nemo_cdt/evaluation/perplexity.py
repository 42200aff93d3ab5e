"""Perplexity: exp of the mean cross-entropy of some tokens."""

import math

import numpy as np


def perplexity(loss: float, tokens: float) -> float:
    """Of so many tokens whose cross-entropies add up to ``loss``, nats."""
    return math.exp(min(loss / tokens, 700.0))  # beyond it no float is large enough


def perplexity_of(log_p_N: np.ndarray, chosen_N: np.ndarray) -> float:
    """Of the chosen tokens of one sequence; nan where none is chosen. The first token is none: nothing predicts it."""
    chosen_N = chosen_N & (np.arange(len(chosen_N)) > 0)
    return float(np.exp(-log_p_N[chosen_N].mean())) if chosen_N.any() else np.nan
