import json

import pytest

from nemo_cdt.report import write_report
from nemo_cdt.report.run import read_run
from tests.report.test_summary import Page, write_run


def estimate(mean):
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "samples": 8}


def method(auc):
    top = {"supporting": estimate(0.2), "interference": estimate(0.5)}
    return {"top": top, "precision": estimate(0.6), "recall": estimate(0.4), "auc": estimate(auc)}


STUDY = {
    "samples": 8,
    "top_k": 30,
    "blind": 0.11,
    "base": {"supporting": 0.02, "interference": 0.09},
    "methods": {"attention": method(0.84), "gradient (CDT)": method(0.95)},
    "answers": {"before": [True, False, False], "after": [True, True, False]},
    "written": [{"question": "Where is <Mary>?", "answer": "office", "before": " The", "after": " office."}],
}


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path)
    (folder / "study.json").write_text(json.dumps(STUDY))
    return folder


def test_the_page_has_detection_beside_attention_and_a_blind_choice_and_answers_before_and_after(run):
    page = Page(write_report(run)).text
    assert "attention 0.840 [0.830, 0.850] 0.600 [0.590, 0.610] 0.400 [0.390, 0.410] 20 % 50 %" in page
    assert "gradient (CDT) 0.950 [0.940, 0.960]" in page
    assert "a blind choice 0.500 0.110 the share chosen 2 % 9 %" in page
    assert "the model answered 1 of 3 validation questions right, afterwards 2" in page
    assert "Where is <Mary>? office The office." in page
    assert "before training the model answered 1 of 3" in page


def test_a_run_without_a_study_says_nothing_of_one(run):
    (run / "study.json").unlink()
    assert "Which method finds the facts" not in Page(write_report(run)).text


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "[]",
        json.dumps(STUDY | {"answers": {"before": [True], "after": []}}),
        json.dumps(STUDY | {"methods": {"ig": {}}}),
        json.dumps(STUDY | {"written": [{}]}),
    ],
)
def test_a_study_that_cannot_be_read_is_left_out_with_a_remark(run, broken):
    (run / "study.json").write_text(broken)
    (remark,) = read_run(run).remarks
    assert remark.startswith("Left out the study: ")
    assert "study.json" in remark
    write_report(run)
