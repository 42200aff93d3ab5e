"""Detection and attention over the checkpoints of a run (Figure 10): does each make the other better?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from nemo_cdt.analysis.detection import METHODS, by_method
from nemo_cdt.analysis.estimate import Estimate, ends, estimate
from nemo_cdt.analysis.groups import blind_share, groups, heads_by_type, shares
from nemo_cdt.analysis.observe import Observation
from nemo_cdt.analysis.result import COLORS, MARKERS, Drawing, Result, Table, axes
from nemo_cdt.analysis.samples import CONTEXT, CRITICAL
from nemo_cdt.data.documents import TokenType
from nemo_cdt.report.heatmap import TYPE_NAMES

LINES = {"attention": ":", "gradient": "-", "ig": "--"}
GROUPS = {"correct": "right", "wrong": "wrong"}
INTERVALS = "Bars: 95 % bootstrap intervals over samples; a change within them may be chance."


@dataclass(kw_only=True, slots=True)
class Moment:
    """A checkpoint's answers: all, the right or the wrong ones. attention, ig: shares of a token of each type.  auc: by
    method.

    critical: share of critical tokens among the top k by the gradient.  blind: of the shares, if all types are alike.
    """

    step: int
    loss: Estimate
    correct: Estimate
    attention: dict[TokenType, Estimate]
    ig: dict[TokenType, Estimate]
    auc: dict[str, Estimate]
    critical: Estimate
    blind: Estimate


def moments(step: int, observations: Sequence[Observation], top_k: int) -> dict[str, Moment]:
    """Of all answers, and of those that this checkpoint gives right and wrong."""
    return {name: _moment(step, members, top_k) for name, members in groups(observations).items()}


def _moment(step: int, observations: Sequence[Observation], top_k: int) -> Moment:
    found = [by_method(one, None, top_k) for one in observations]

    def by_type(name: str) -> dict[TokenType, Estimate]:
        values = [shares(heads_by_type(getattr(one, name))) for one in observations]
        return {type: estimate([each[type] for each in values]) for type in CONTEXT}

    return Moment(
        step=step,
        loss=estimate([one.loss for one in observations]),
        correct=estimate([float(one.correct) for one in observations]),
        attention=by_type("attention_LHT"),
        ig=by_type("ig_LHT"),
        auc={name: estimate([each[name].auc for each in found]) for name in LINES},
        critical=estimate([np.nansum([each["gradient"].top[type] for type in CRITICAL]) for each in found]),
        blind=blind_share(observations),
    )


def across_checkpoints(checkpoints: Sequence[dict[str, Moment]]) -> Result:
    """``checkpoints``: the :func:`moments` of each, in their order."""
    by_group = {name: [checkpoint[name] for checkpoint in checkpoints] for name in checkpoints[0]}
    every = by_group["all"]
    first, last = every[0], every[-1]
    return Result(
        title="Do detection and attention improve each other while the model trains?",
        explanation=(
            "The paper reads CDT as expectation and maximisation: detection finds the noise, training without it "
            "sharpens attention, and sharper attention detects better. So the same samples are given to every "
            "checkpoint of a run. If that holds, the ranking of critical tokens (AUC, 0.5 if blind) and the shares "
            "of the facts rise together; compare with a run of plain training before calling it an effect of "
            "denoising."
        ),
        headline=[
            (
                f"{first.auc['gradient'].mean:.3f} to {last.auc['gradient'].mean:.3f}",
                "AUC of the gradient, first to last",
            ),
            (f"{first.correct.percent()} to {last.correct.percent()}", "correct answers"),
        ],
        tables=[_table(name, found) for name, found in by_group.items() if any(one.loss.count for one in found)],
        drawings=[_auc(every), *(_shares(every, name) for name in ("attention", "ig"))],
        numbers={"checkpoints": {name: [_json(one) for one in found] for name, found in by_group.items()}},
    )


def _table(group: str, moments: Sequence[Moment]) -> Table:
    rows = [
        [
            str(one.step),
            str(one.loss.count),
            str(one.loss),
            one.correct.percent(),
            str(one.critical),
            *(str(one.auc[name]) for name in LINES),
            *(str(one.ig[type]) for type in CRITICAL),
        ]
        for one in moments
    ]
    header = [
        "step",
        "samples",
        "loss of the answer",
        "correct",
        "critical among the top, gradient",
        *(f"AUC, {METHODS[name]}" for name in LINES),
        *(f"share of IG, {TYPE_NAMES[type]}" for type in CRITICAL),
    ]
    caption = "Means over samples, 95 % intervals. Blind are an AUC of 0.5 and a share of "
    caption += f"{moments[0].blind.mean:.3g}."
    if group == "all":
        return Table(title="Checkpoints", caption=caption, header=header, rows=rows)
    caption += f" A row is of the samples that its checkpoint answers {GROUPS[group]}: not the same ones in each."
    return Table(title=f"Checkpoints, {group} answers", caption=caption, header=header, rows=rows)


def _json(one: Moment) -> dict[str, Any]:
    return (
        {"step": one.step}
        | {name: getattr(one, name).json() for name in ("loss", "correct", "critical")}
        | {name: {t.name: e.json() for t, e in getattr(one, name).items()} for name in ("attention", "ig")}
        | {"auc": {name: e.json() for name, e in one.auc.items()}}
    )


def _auc(moments: Sequence[Moment]) -> Drawing:
    figure, drawn = axes("step", "AUC")
    for name, line in LINES.items():
        _line(drawn, moments, [one.auc[name] for one in moments], 1, linestyle=line, marker="o", label=METHODS[name])
    drawn.axhline(0.5, color="#555555", linewidth=0.8)
    caption = f"How well each score tells facts from the rest of the context; 0.5 (grey) is blind. {INTERVALS}"
    return Drawing(name="auc", title="Detection over checkpoints", caption=caption, figure=figure)


def _shares(moments: Sequence[Moment], name: str) -> Drawing:
    title = {"attention": "Attention", "ig": "Information flow"}[name]
    figure, drawn = axes("step", f"share of the types' {title.lower()} (%)")
    for type in CONTEXT:
        values, look = [getattr(one, name)[type] for one in moments], {"color": COLORS[type], "marker": MARKERS[type]}
        _line(drawn, moments, values, 100, **look, label=TYPE_NAMES[type])
    drawn.axhline(100 * moments[0].blind.mean, color="#555555", linewidth=0.8)
    caption = (
        f"{title} of a token of each type, divided by their sum: {moments[0].blind.percent()} each, the grey line, if "
        f"blind. {INTERVALS}"
    )
    return Drawing(name=f"{name}_share", title=f"{title} over checkpoints", caption=caption, figure=figure)


def _line(drawn: Axes, moments: Sequence[Moment], values: Sequence[Estimate], scale: float, **look: Any) -> None:
    """Means with their intervals; as all is drawn, the axis ends beyond the intervals."""
    means = [scale * value.mean for value in values]
    drawn.errorbar([one.step for one in moments], means, scale * ends(values), capsize=2, elinewidth=0.8, **look)
