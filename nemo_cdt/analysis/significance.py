"""Is one run better than another, or lucky (Table 14)? A paired t-test and a bootstrap over the same questions."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from nemo_cdt.analysis.estimate import bootstrap
from nemo_cdt.analysis.result import Drawing, Result, Table, axes
from nemo_cdt.data.jsonl import parse
from nemo_cdt.utils.reading import blamed_on, read_lines


def significance(predictions: Path, baseline: Path, resamples: int, seed: int) -> Result:
    """Of files of JSON lines with ``id``, and ``score`` or ``prediction`` and ``answer``.

    Raises:
        ValueError: where a line is none, or the two do not answer the same questions.
    """
    ours, theirs = read_scores(predictions), read_scores(baseline)
    _require_same(ours, theirs, predictions, baseline)
    ids = sorted(ours)
    one, other = (np.array([scores[id] for id in ids]) for scores in (ours, theirs))
    difference = one - other
    t, p = paired_t(difference)
    low, high = bootstrap(difference, resamples, seed)
    sign = (low > 0) - (high < 0)
    verdict = {1: "better", -1: "worse", 0: "not told apart"}[int(sign)]
    rows = [
        ["questions", f"{len(ids):,}"],
        [f"mean score of {predictions}", f"{one.mean():.4g}"],
        [f"mean score of {baseline}", f"{other.mean():.4g}"],
        ["mean difference", f"{difference.mean():.4g}"],
        [f"95 % bootstrap interval, {resamples:,} resamples", f"{low:.4g} to {high:.4g}"],
        ["paired t", "—" if np.isnan(t) else f"{t:.4g}"],
        ["two-sided p", "—" if np.isnan(p) else f"{p:.3g}"],
        ["better on", f"{int((difference > 0).sum()):,}"],
        ["worse on", f"{int((difference < 0).sum()):,}"],
    ]
    result = Result(
        title="Is one run better than the other, or lucky?",
        explanation=(
            "Both runs answered the same questions, so each question gives one difference of scores. The paired "
            "t-test asks how likely a mean difference this far from zero would be if there were none; a p below 0.05 "
            "is commonly called significant. The bootstrap draws the questions anew, with repetition, and says in "
            "which interval the mean difference then lies 95 % of the time; it assumes no normal distribution. "
            "Neither says that a difference matters, nor speaks for other seeds of training: that takes several runs."
        ),
        headline=[
            (f"{difference.mean():.4g}", "mean difference"),
            (f"{low:.3g} to {high:.3g}", "95 % interval"),
            ("—" if np.isnan(p) else f"{p:.2g}", "two-sided p of the paired t-test"),
            (verdict, "by the interval"),
        ],
        tables=[Table(title="The comparison", caption="", header=["", "value"], rows=rows)],
        drawings=[_drawing(difference)],
        numbers={
            "questions": len(ids),
            "mean": float(one.mean()),
            "baseline_mean": float(other.mean()),
            "difference": float(difference.mean()),
            "interval": [low, high],
            "t": None if np.isnan(t) else t,
            "p": None if np.isnan(p) else p,
            "resamples": resamples,
        },
    )
    if np.isnan(p):
        result.notices.append(
            "All differences are alike, so there is no spread to test against: t and p are undefined."
        )
    return result


def paired_t(difference: np.ndarray) -> tuple[float, float]:
    """(t, two-sided p) of the mean against zero; nan where the differences do not vary."""
    if np.ptp(difference) == 0:
        return np.nan, np.nan
    t, p = stats.ttest_1samp(difference, 0.0)
    return float(t), float(p)


def read_scores(path: Path) -> dict[str, float]:
    """By ``id``: ``score``, or 1 where ``prediction`` is ``answer`` but for case and white space, else 0."""
    found: dict[str, float] = {}
    for number, line in read_lines(path):
        if not line.isspace():
            with blamed_on(f"{path}:{number}"):
                id, score = _score(parse(line))
                if id in found:
                    raise ValueError(f"the id {id!r} is there twice")
            found[id] = score
    if len(found) < 2:
        raise ValueError(f"{path}: {len(found)} predictions; a comparison takes two at least")
    return found


def _score(row: dict[str, Any]) -> tuple[str, float]:
    if "id" not in row:
        raise ValueError("a prediction is a JSON object with 'id', and 'score' or 'prediction' and 'answer'")
    score = row.get("score")
    if isinstance(score, int | float) and abs(score) <= sys.float_info.max:
        return str(row["id"]), float(score)
    if score is None and isinstance(row.get("prediction"), str) and isinstance(row.get("answer"), str):
        said, right = (" ".join(row[name].lower().split()) for name in ("prediction", "answer"))
        return str(row["id"]), float(said == right)
    raise ValueError("a prediction needs a finite number 'score', or the strings 'prediction' and 'answer'")


def _require_same(ours: dict[str, float], theirs: dict[str, float], predictions: Path, baseline: Path) -> None:
    for one, other, where in ((ours, theirs, baseline), (theirs, ours, predictions)):
        if missing := sorted(set(one) - set(other)):
            raise ValueError(
                f"{where} does not answer {missing[0]!r} (and {len(missing) - 1} more): compare equal questions"
            )


def _drawing(difference: np.ndarray) -> Drawing:
    figure, drawn = axes("difference of scores", "questions")
    drawn.hist(difference, bins=min(40, max(5, len(difference) // 5)), color="#0072B2")
    drawn.axvline(float(difference.mean()), color="#D55E00", linestyle="--", label="mean")
    drawn.axvline(0, color="#555555", linewidth=0.8, label="no difference")
    caption = "How the differences spread over questions. A mean carried by a few outliers deserves doubt."
    return Drawing(name="differences", title="Differences by question", caption=caption, figure=figure)
