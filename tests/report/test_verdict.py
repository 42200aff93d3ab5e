"""What a report says first. The interval is compared with published ones (Newcombe 1998, table II, method 10)."""

import json

import pytest

from nemo_cdt.report.run import read_run
from nemo_cdt.report.verdict import difference, verdict
from tests.report.test_summary import write_run


@pytest.mark.parametrize(
    ("right", "other", "questions", "expected"),
    # statsmodels 0.14's confint_proportions_2indep(method="newcomb"), which is method 10
    [(14, 10, 16, (-0.052496, 0.505008)), (16, 16, 16, (-0.193608, 0.193608)), (0, 30, 32, (-0.982689, -0.762000))],
)
def test_the_interval_is_newcombes(right, other, questions, expected):
    assert difference(right, other, questions) == pytest.approx(expected, abs=1e-6)


def with_accuracy(run, own, baseline):
    for folder, accuracy in ((run, own), (run / "baseline", baseline)):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        rows = [row | ({"val_accuracy": accuracy} if "val_loss" in row else {}) for row in rows]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_small_difference_is_not_told_apart_and_a_large_one_is(tmp_path):
    run = write_run(tmp_path)
    with_accuracy(run, 0.5, 0.46875)
    assert verdict(read_run(run)) == (
        "After 100 steps CDT answers 32 of 64 validation questions right. Plain CE answers 30 right. The difference is "
        "+3 points, with a 95 % interval from -14 to +20: one seed and 64 questions, which does not tell the two apart."
    )
    with_accuracy(run, 0.9375, 0.46875)
    assert "which tells the two apart here" in verdict(read_run(run))


def test_without_known_answers_it_is_of_the_loss(tmp_path):
    run = write_run(tmp_path)
    for folder, loss in ((run, 1.5), (run / "baseline", 2.0)):
        rows = [{"step": 1, "loss": 3.0}, {"step": 1, "val_loss": loss}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert verdict(read_run(run)) == (
        "After 1 steps the validation loss of CDT is 1.5000, that of plain CE 2.0000 (-25.00 %). This is one seed, "
        "without an interval."
    )


def test_without_a_validation_there_is_none(tmp_path):
    run = write_run(tmp_path)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    assert verdict(read_run(run)) is None
