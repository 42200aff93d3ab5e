"""Detection and attention over the checkpoints of a run (Figure 10): does each make the other better?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemo_cdt.analysis.detection import METHODS, by_method
from nemo_cdt.analysis.estimate import Estimate, estimate
from nemo_cdt.analysis.groups import heads_by_type, shares
from nemo_cdt.analysis.observe import Observation
from nemo_cdt.analysis.result import COLORS, MARKERS, Drawing, Result, Table, axes
from nemo_cdt.analysis.samples import CONTEXT, CRITICAL
from nemo_cdt.data.documents import TokenType
from nemo_cdt.report.heatmap import TYPE_NAMES

LINES = {"attention": ":", "gradient": "-", "ig": "--"}


@dataclass(kw_only=True, slots=True)
class Moment:
    """A checkpoint. attention, ig: shares of a token of each type.  auc: by method.

    critical: share of critical tokens among the top k by the gradient.
    """

    step: int
    loss: Estimate
    correct: Estimate
    attention: dict[TokenType, Estimate]
    ig: dict[TokenType, Estimate]
    auc: dict[str, Estimate]
    critical: Estimate


def moment(step: int, observations: Sequence[Observation], top_k: int) -> Moment:
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
        auc={name: estimate([each[name].auc for each in found]) for name in found[0]},
        critical=estimate([np.nansum([each["gradient"].top[type] for type in CRITICAL]) for each in found]),
    )


def em(moments: Sequence[Moment]) -> Result:
    first, last = moments[0], moments[-1]
    rows = [
        [
            str(one.step),
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
        "loss of the answer",
        "correct",
        "critical among the top, gradient",
        *(f"AUC, {METHODS[name]}" for name in LINES),
        *(f"share of IG, {TYPE_NAMES[type]}" for type in CRITICAL),
    ]
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
        tables=[Table(title="Checkpoints", caption="Means over samples, 95 % intervals.", header=header, rows=rows)],
        drawings=[_auc(moments), *(_shares(moments, name) for name in ("attention", "ig"))],
        numbers={
            "checkpoints": [
                {"step": one.step}
                | {name: getattr(one, name).json() for name in ("loss", "correct", "critical")}
                | {name: {t.name: e.json() for t, e in getattr(one, name).items()} for name in ("attention", "ig")}
                | {"auc": {name: e.json() for name, e in one.auc.items()}}
                for one in moments
            ]
        },
    )


def _auc(moments: Sequence[Moment]) -> Drawing:
    figure, drawn = axes("step", "AUC")
    for name, line in LINES.items():
        drawn.plot([m.step for m in moments], [m.auc[name].mean for m in moments], f"{line}o", label=METHODS[name])
    drawn.axhline(0.5, color="#555555", linewidth=0.8)
    caption = "How well each score tells facts from the rest of the context; 0.5 (grey) is blind."
    return Drawing(name="auc", title="Detection", caption=caption, figure=figure)


def _shares(moments: Sequence[Moment], name: str) -> Drawing:
    figure, drawn = axes("step", "share (%)")
    for type in CONTEXT:
        values = [100 * getattr(m, name)[type].mean for m in moments]
        drawn.plot([m.step for m in moments], values, color=COLORS[type], marker=MARKERS[type], label=TYPE_NAMES[type])
    title = {"attention": "Attention", "ig": "Information flow"}[name]
    caption = f"{title} of a token of each type, divided by the sum of the four: 25 % each if blind."
    return Drawing(name=f"{name}_share", title=title, caption=caption, figure=figure)
