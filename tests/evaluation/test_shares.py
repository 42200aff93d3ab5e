"""Shares of types, by counting tokens one at a time."""

import numpy as np
import pytest

from nemo_cdt.data.documents import TokenType
from nemo_cdt.evaluation.shares import counted, critical, shares


def test_shares_are_those_of_tokens_counted_one_at_a_time():
    random = np.random.default_rng(0)
    types_N, score_N = random.integers(len(TokenType), size=200), random.random(200)
    mean = sum(score_N) / 200
    chosen = [kind for kind, score in zip(types_N, score_N, strict=True) if score >= mean]

    found = shares(counted(types_N[critical(score_N)]).tolist(), counted(types_N).tolist())

    assert list(found) == ["critical_supporting", "base_supporting", "critical_interference", "base_interference"]
    for kind in (TokenType.supporting, TokenType.interference):
        assert found[f"critical_{kind.name}"] == pytest.approx(chosen.count(kind) / len(chosen))
        assert found[f"base_{kind.name}"] == pytest.approx(types_N.tolist().count(kind) / 200)
    assert found["critical_supporting"] != pytest.approx(found["base_supporting"], abs=1e-3)


def test_a_score_at_the_mean_is_critical():
    assert critical(np.array([1.0, 1.0, 1.0])).all()
    assert critical(np.array([0.0, 1.0, 2.0])).tolist() == [False, True, True]


def test_of_nothing_the_shares_are_zero():
    assert set(shares([0.0] * 6, [0.0] * 6).values()) == {0.0}
