"""One line on what a run has shown, and on what it has not: the first thing that a reader wants to know."""

import math

import numpy as np
from scipy.stats import binomtest

from nemo_cdt.report.run import Run

HARDLY = 1e-4
"""Of an embedding's length: what a shift must be for a tiny model to be told apart at all (docs/results)."""


def verdict(run: Run) -> str | None:
    """Of the last validation: right answers where the data knows them, else the loss; None without one."""
    if run.validation is None:
        return None
    said = _of_answers(run) if "val_accuracy" in run.validation else _of_loss(run)
    return " ".join(filter(None, (said, _of_strength(run))))


def _of_strength(run: Run) -> str | None:
    """Where the shift is so small that the two can hardly differ."""
    moved = float(np.nanmedian(run.training.get("delta_to_embedding", [math.nan])))
    if run.baseline is None or not moved < HARDLY:
        return None
    return (
        f"At this strength a shift is {moved:.1e} of the length of the embedding that it moves, so that the two see "
        "almost the same input; objective.beta and objective.rho are the strength."
    )


def difference(right: int, other: int, questions: int) -> tuple[float, float]:
    """The 95 % interval of a difference of two shares of ``questions``, by Newcombe's method 10 (1998).

    As if each were of questions of its own. They are the same questions here, so the true interval is no wider.
    """
    p, q = right / questions, other / questions
    (p_low, p_high), (q_low, q_high) = (
        binomtest(count, questions).proportion_ci(method="wilson") for count in (right, other)
    )
    return p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)


def _of_answers(run: Run) -> str:
    questions = run.config.data.validation_samples
    right = _right(run, questions)
    told = f"After {_steps(run)} steps {run.label} answers {right} of {questions} validation questions right"
    if run.study is not None:
        told += f"; before training the model answered {sum(run.study.before)} of {len(run.study.before)}"
    if run.baseline is None or "val_accuracy" not in (run.baseline.validation or {}):
        return told + "."
    other = _right(run.baseline, questions)
    low, high = (100 * end for end in difference(right, other, questions))
    points = 100 * (right - other) / questions
    apart = "tells the two apart here" if low > 0 or high < 0 else "does not tell the two apart"
    beside = _sentence(run.baseline.label)
    return (
        f"{told}. {beside} answers {other} right. The difference is {points:+.0f} points, with a 95 % "
        f"interval from {low:+.0f} to {high:+.0f}: one seed and {questions} questions, which {apart}."
    )


def _of_loss(run: Run) -> str:
    told = f"After {_steps(run)} steps the validation loss of {run.label} is {_loss(run):.4f}"
    if run.baseline is None or "val_loss" not in (run.baseline.validation or {}):
        return told + "."
    other = _loss(run.baseline)
    change = 100 * (_loss(run) - other) / other if other else math.nan
    return f"{told}, that of {run.baseline.label} {other:.4f} ({change:+.2f} %). This is one seed, without an interval."


def _steps(run: Run) -> str:
    return f"{int(run.training['step'][-1]):,}"


def _right(run: Run, questions: int) -> int:
    assert run.validation is not None
    return round(float(run.validation["val_accuracy"][-1]) * questions)


def _loss(run: Run) -> float:
    assert run.validation is not None
    return float(run.validation["val_loss"][-1])


def _sentence(label: str) -> str:
    """As it begins one."""
    return label[:1].upper() + label[1:]
