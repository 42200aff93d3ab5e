import json

import numpy as np
import pytest
from scipy import stats

from nemo_cdt.analysis.significance import read_scores, significance


def write(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def scores(path, values):
    return write(path, [{"id": index, "score": float(value)} for index, value in enumerate(values)])


@pytest.fixture
def paths(tmp_path):
    return tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"


def test_t_and_p_are_those_of_the_paired_test(paths):
    rng = np.random.default_rng(0)
    theirs = rng.normal(size=50)
    ours = theirs + 0.2 + rng.normal(scale=0.3, size=50)
    found = significance(scores(paths[0], ours), scores(paths[1], theirs), 2000, 0).numbers
    expected = stats.ttest_rel(ours, theirs)
    unpaired = stats.ttest_ind(ours, theirs)

    assert found["t"] == pytest.approx(expected.statistic)
    assert found["p"] == pytest.approx(expected.pvalue)
    assert found["p"] != pytest.approx(unpaired.pvalue)
    assert found["interval"][0] < found["difference"] < found["interval"][1]
    assert found["difference"] == pytest.approx((ours - theirs).mean())


def test_the_order_of_the_files_does_not_matter(paths):
    ours = [{"id": index, "score": index % 3} for index in range(9)]
    theirs = [{"id": index, "score": index % 2} for index in range(9)]
    expected = significance(write(paths[0], ours), write(paths[1], theirs), 100, 0).numbers
    found = significance(write(paths[0], ours[::-1]), write(paths[1], theirs), 100, 0).numbers

    assert found == expected


def test_predictions_are_right_but_for_case_and_space(paths):
    rows = [("a", "The  garden", "the garden"), ("b", "hall", "garden")]
    path = write(paths[0], [{"id": id, "prediction": said, "answer": right} for id, said, right in rows])

    assert read_scores(path) == {"a": 1.0, "b": 0.0}


def test_equal_runs_are_not_told_apart(paths):
    result = significance(scores(paths[0], [1, 0, 1]), scores(paths[1], [1, 0, 1]), 100, 0)

    assert (result.numbers["t"], result.numbers["p"]) == (None, None)
    assert ("not told apart", "by the interval") in result.headline
    assert "no spread" in result.notices[0]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["{"], "ours.jsonl:1: not JSON"),
        ([{"score": 1}], "ours.jsonl:1: a prediction is a JSON object with 'id'"),
        ([{"id": 1, "score": "high"}], "ours.jsonl:1: a prediction needs a finite number 'score', or the strings"),
        ([{"id": 1, "score": 1}, {"id": "1", "score": 0}], "ours.jsonl:2: the id '1' is there twice"),
        ([{"id": 1, "score": 1}], "1 predictions; a comparison takes two at least"),
        ([{"id": 1, "score": 1}, {"id": 5, "score": 0}], "theirs.jsonl does not answer '5' \\(and 0 more\\)"),
    ],
)
def test_a_file_that_cannot_be_compared_is_one_line(paths, rows, expected):
    scores(paths[1], [0, 1])
    with pytest.raises(ValueError, match=expected):
        significance(write(paths[0], rows), paths[1], 100, 0)
