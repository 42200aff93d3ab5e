import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from nemo_cdt.analysis import estimate as estimates
from nemo_cdt.analysis.detection import detected
from nemo_cdt.analysis.estimate import auc, bootstrap, estimate, pearson, spearman
from nemo_cdt.data.documents import TokenType

RNG = np.random.default_rng(0)
types = RNG.integers(6, size=300)
scores = np.round(RNG.gamma(1.0, size=300) + 0.3 * (types == TokenType.supporting), 1)  # rounded, so that some tie
critical = (types == TokenType.supporting) | (types == TokenType.interference)
context = types < TokenType.question


def test_quality_is_that_of_another_implementation():
    found = detected(scores, types, 30)
    chosen = scores >= scores.mean()

    assert found.precision == pytest.approx(precision_score(critical[context], chosen[context]))
    assert found.recall == pytest.approx(recall_score(critical[context], chosen[context]))
    assert found.auc == pytest.approx(roc_auc_score(critical[context], scores[context]))


def test_the_top_is_chosen_from_the_context_alone():
    score = np.arange(300.0)
    found = detected(score, types, 30)
    top = [type for type in types[::-1] if type < TokenType.question][:30]

    assert found.top == {type: pytest.approx(top.count(type) / 30) for type in found.top}
    assert sum(found.top.values()) == pytest.approx(1)


def test_a_method_may_name_its_tokens_itself():
    key = np.zeros(300, dtype=bool)
    key[np.flatnonzero(types == TokenType.supporting)[:4]] = True
    key[np.flatnonzero(types == TokenType.question)[0]] = True  # no context, so it counts nowhere
    found = detected(scores, types, 30, key)

    assert found.precision == 1
    assert found.recall == pytest.approx(4 / critical.sum())
    assert found.top[TokenType.supporting] == 1


def test_nothing_detected_has_no_precision():
    found = detected(scores, types, 30, np.zeros(300, dtype=bool))

    assert np.isnan(found.precision)
    assert np.isnan(found.auc)
    assert found.recall == 0


def test_a_ranking_of_one_kind_has_no_auc():
    assert np.isnan(auc(scores, np.ones(300, bool)))


def test_correlations_are_those_of_scipy():
    other = scores + RNG.normal(size=300)

    assert pearson(scores, other) == pytest.approx(stats.pearsonr(scores, other).statistic)
    assert spearman(scores, other) == pytest.approx(stats.spearmanr(scores, other).statistic)
    assert np.isnan(pearson(scores, np.ones(300)))
    assert np.isnan(spearman(scores[:2], other[:2]))


def test_an_interval_covers_the_mean_of_what_is_known():
    found = estimate([1.0, 2.0, np.nan, 6.0])

    assert (found.mean, found.count) == (3.0, 3)
    assert 1.0 <= found.low < 3.0 < found.high <= 6.0
    assert str(estimate([np.nan])) == "—"
    assert str(found) == f"3 [{found.low:.3g}, {found.high:.3g}]"


def test_of_fewer_than_three_samples_the_number_is_told_and_no_interval():
    assert (str(estimate([2.0])), str(estimate([2.0, np.nan, 3.0]))) == ("2 (n=1)", "2.5 (n=2)")
    assert estimate([2.0, 3.0]).json() == {"mean": 2.5, "low": None, "high": None, "samples": 2}


def test_a_bootstrap_is_close_to_the_normal_interval_and_needs_no_whole_table(monkeypatch):
    values = RNG.normal(size=400)
    low, high = bootstrap(values, 4000, 0)
    expected = values.mean() + 1.96 * values.std() / 20 * np.array([-1, 1])
    np.testing.assert_allclose([low, high], expected, atol=0.01)

    monkeypatch.setattr(estimates, "CHUNK", 1000)
    np.testing.assert_allclose(bootstrap(values, 4000, 0), [low, high])
