"""What a reader sees of checkpoints: intervals, base lines, and right and wrong answers apart."""

from dataclasses import replace

import numpy as np
import pytest

from nemo_cdt.analysis.checkpoints import across_checkpoints, moments
from nemo_cdt.analysis.observe import Observation, observe
from nemo_cdt.analysis.page import Facts, write_page
from nemo_cdt.analysis.samples import CONTEXT
from tests.analysis.models import watched
from tests.analysis.test_flow import TOP_K, sample


@pytest.fixture(scope="module")
def observations() -> list[Observation]:
    """Two of one sequence, answered wrong and, as if, right."""
    one = observe(watched("llama"), sample(), TOP_K)[0]
    return [one, replace(one, correct=True, loss=one.loss / 2, ig_LHT=one.ig_LHT[..., ::-1])]


def test_right_and_wrong_answers_are_apart(observations):
    result = across_checkpoints([moments(3, observations, TOP_K), moments(12, observations[:1], TOP_K)])

    assert [table.title for table in result.tables] == [
        "Checkpoints",
        *(f"Checkpoints, {g} answers" for g in ("correct", "wrong")),
    ]
    assert [[row[1] for row in table.rows] for table in result.tables] == [["2", "1"], ["1", "0"], ["1", "1"]]
    found = result.numbers["checkpoints"]
    assert found["correct"][0]["loss"]["mean"] == pytest.approx(found["wrong"][0]["loss"]["mean"] / 2)
    assert found["wrong"][1] == found["all"][1]


def test_a_png_has_its_title(observations, tmp_path):
    result = across_checkpoints([moments(3, observations, TOP_K)])
    write_page(tmp_path, result, Facts(values={}), "command")

    assert [drawing.figure.get_suptitle() for drawing in result.drawings] == [
        drawing.title for drawing in result.drawings
    ]
    assert all(drawing.title for drawing in result.drawings)


def test_axes_hold_the_intervals_and_the_base_line(observations):
    several = [*observations, *observations[:1]]  # of two there is no interval
    checkpoints = [moments(3, several, TOP_K), moments(12, several, TOP_K)]
    drawn = {drawing.name: drawing.figure.axes[0] for drawing in across_checkpoints(checkpoints).drawings}
    shares = [
        100 * end
        for type in CONTEXT
        for end in (checkpoints[0]["all"].ig[type].low, checkpoints[0]["all"].ig[type].high)
    ]
    aucs = [end for one in checkpoints[0]["all"].auc.values() for end in (one.low, one.high)]

    assert np.ptp(shares[:2]) > 1
    for name, base, ends in (("auc", 0.5, aucs), ("ig_share", 25, shares), ("attention_share", 25, [])):
        low, high = drawn[name].get_ylim()
        assert low < min(base, *ends, base)
        assert high > max(base, *ends, base)
        assert any(list(line.get_ydata()) == [base, base] for line in drawn[name].lines)
        assert len(drawn[name].containers) == (3 if name == "auc" else 4)
        assert drawn[name].get_ylabel() != "share (%)"
