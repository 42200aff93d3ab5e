"""Perplexity as the inverse of the geometric mean of probabilities."""

import math

import numpy as np
import pytest

from nemo_cdt.evaluation.perplexity import perplexity, perplexity_of

PROBABILITIES = np.array([1.0, 0.5, 0.25, 0.125])  # of the first token none: nothing predicts it


def test_perplexity_is_the_inverse_of_the_geometric_mean():
    expected = (0.5 * 0.25 * 0.125) ** (-1 / 3)

    assert perplexity(-np.log(PROBABILITIES[1:]).sum(), 3) == pytest.approx(expected)
    assert perplexity_of(np.log(PROBABILITIES), np.ones(4, dtype=bool)) == pytest.approx(expected)
    assert perplexity_of(np.log(PROBABILITIES), np.array([True, True, False, False])) == pytest.approx(2.0)


def test_of_no_token_there_is_none_and_of_a_hopeless_model_it_is_finite():
    assert math.isnan(perplexity_of(np.log(PROBABILITIES), np.array([True, False, False, False])))
    assert math.isfinite(perplexity(1e6, 1))
