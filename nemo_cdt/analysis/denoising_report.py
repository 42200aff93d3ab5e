"""Denoising by hand, in words, tables and pictures: from which strength on it acts, and from which it does harm."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_cdt.analysis.analyzed_model import AnalyzedModel
from nemo_cdt.analysis.denoising import BEFORE, DENOISED, TRAINED, Effect, Setting, effects, settings_of
from nemo_cdt.analysis.estimate import Estimate, estimate
from nemo_cdt.analysis.observe import shown
from nemo_cdt.analysis.result import COLORS, MARKERS, Drawing, Result, Table, axes
from nemo_cdt.analysis.samples import CONTEXT, CRITICAL, Sample
from nemo_cdt.analysis.settings import Denoise, NoiseBy, Optimizer
from nemo_cdt.config import Precision
from nemo_cdt.data.documents import TokenType
from nemo_cdt.objectives.cdt.settings import Normalization
from nemo_cdt.report.heatmap import TYPE_NAMES

ACTS = 0.01
"""From this relative change on, of a type's attention, denoising is said to act, and of the loss to break it."""


def denoising(
    load: Callable[[Precision], AnalyzedModel], samples: Sequence[Sample], settings: Denoise, top_k: int
) -> list[Effect]:
    """``load``: the model in a precision; one is in memory at a time."""
    found: list[Effect] = []
    for precision in settings.dtypes:
        analyzed = load(precision)
        asked = settings_of(precision, settings)
        steps = (step for sample in samples for step in effects(analyzed, sample, asked, settings, top_k))
        for step in shown(steps, f"settings of denoising in {precision}", len(samples) * len(asked)):
            found += step
        del analyzed
    return found


@dataclass(kw_only=True, slots=True)
class Summary:
    """Means over samples. attention, ig: of each type, after over before; loss: the same of the answer's loss.

    correct: share of right answers after.  changed, updated: as in :class:`~nemo_cdt.analysis.denoising.Effect`.
    """

    attention: dict[TokenType, Estimate]
    ig: dict[TokenType, Estimate]
    loss: Estimate
    correct: Estimate
    changed: Estimate
    updated: Estimate

    def json(self) -> dict:
        by_type = {
            name: {type.name: one.json() for type, one in getattr(self, name).items()} for name in ("attention", "ig")
        }
        return by_type | {name: getattr(self, name).json() for name in ("loss", "correct", "changed", "updated")}


def summarise(
    found: Sequence[Effect], precision: Precision, kind: Normalization, strength: float, stage: str
) -> Summary:
    before = {one.sample: one for one in found if one.stage == BEFORE and one.setting.precision is precision}
    wanted = Setting(precision=precision, normalization=kind, strength=strength)
    after = [one for one in found if one.setting == wanted and one.stage == stage]
    pairs = [(one, before[one.sample]) for one in after]

    def ratios(name: str) -> dict[TokenType, Estimate]:
        values = [(getattr(one, name), getattr(first, name)) for one, first in pairs]
        return {type: estimate([a[type] / b[type] if b[type] > 0 else np.nan for a, b in values]) for type in CONTEXT}

    return Summary(
        attention=ratios("attention"),
        ig=ratios("ig"),
        loss=estimate([one.loss / first.loss if first.loss > 0 else np.nan for one, first in pairs]),
        correct=estimate([float(one.correct) for one in after]),
        changed=estimate([one.changed for one in after]),
        updated=estimate([one.updated for one in after]),
    )


def report(found: Sequence[Effect], settings: Denoise) -> Result:
    result = Result(
        title="Where does denoising begin to act, and where does it break?",
        explanation=(
            "The embeddings of noise tokens are moved against their gradient, by hand and for one sample, as Context "
            "Denoising Training does in each step; then the model reads the sample again. Two ways to set how far: "
            "Eq. 3 subtracts the gradient times lr * beta (the paper: 5e-5), and the relative normalization moves "
            "each noise token by a share rho of its embedding's length. Tables and "
            "pictures say what that does to attention and IG of a token of each type, and to the loss. "
            + _NOISE[settings.noise]
        ),
    )
    stages = [DENOISED] + ([TRAINED] if settings.optimizer is not Optimizer.none else [])
    if TRAINED in stages:
        result.explanation += (
            f" After that one {settings.optimizer} step with lr={settings.lr:g} on the moved input, from the same "
            "weights each time, and the model reads the unmoved sample (trained). Strength 0 is a step without "
            "denoising."
        )
    for kind, strengths in ((Normalization.gradient, settings.strengths), (Normalization.relative, settings.rhos)):
        for stage in stages if strengths else []:
            _add(result, found, settings, kind, sorted(strengths), stage)
    return result


_NOISE = {
    NoiseBy.gradient: "Noise is what CDT calls noise: gradients shorter than their mean (Eq. 2).",
    NoiseBy.ig: "Noise is what has an IG below its mean (section 3.2).",
    NoiseBy.oracle: "Noise is every token that belongs to no fact: what perfect detection would say.",
}
_SYMBOL = {Normalization.gradient: "lr * beta", Normalization.relative: "rho"}


def _add(
    result: Result, found: Sequence[Effect], settings: Denoise, kind: Normalization, strengths: list[float], stage: str
) -> None:
    """Table, numbers and picture of one normalization at one stage."""
    curves = {precision: _curve(found, precision, kind, strengths, stage) for precision in settings.dtypes}
    for precision, curve in curves.items():
        result.tables.append(_table(curve, precision, kind, stage))
        result.numbers.setdefault(precision.value, {}).setdefault(kind.value, {})[stage] = {
            group: [
                {"strength": strength} | one.json()
                for strength, one in _curve(members, precision, kind, strengths, stage).items()
            ]
            for group, members in _answered(found, precision).items()
        }
        if stage == DENOISED:
            result.headline += [
                (
                    _strength(begins(curve)),
                    f"{_SYMBOL[kind]} from which it acts in {precision} (attention to a type changes by 1 %)",
                ),
                (
                    _strength(breaks_at(curve)),
                    f"{_SYMBOL[kind]} from which it breaks in {precision} (the loss rises by 1 %)",
                ),
            ]
    result.drawings.append(_drawing(curves, kind, stage))


def _curve(
    found: Sequence[Effect], precision: Precision, kind: Normalization, strengths: list[float], stage: str
) -> dict[float, Summary]:
    """By strength; of training also at 0, which both normalizations share."""
    plain = {0.0: summarise(found, precision, Normalization.gradient, 0.0, stage)} if stage == TRAINED else {}
    return plain | {strength: summarise(found, precision, kind, strength, stage) for strength in strengths}


def _answered(found: Sequence[Effect], precision: Precision) -> dict[str, list[Effect]]:
    """The samples that were answered right, and wrong, before anything was done."""
    right = {one.sample for one in found if one.stage == BEFORE and one.setting.precision is precision and one.correct}
    return {
        "all": list(found),
        "correct": [one for one in found if one.sample in right],
        "wrong": [one for one in found if one.sample not in right],
    }


def begins(by_strength: dict[float, Summary]) -> float | None:
    """The least strength that changes the attention to some type by :data:`ACTS`."""
    acting = (s for s, one in by_strength.items() if any(abs(e.mean - 1) >= ACTS for e in one.attention.values()))
    return next(acting, None)


def breaks_at(by_strength: dict[float, Summary]) -> float | None:
    """The least strength that raises the loss by :data:`ACTS`: so far from the input the gradient says nothing."""
    return next((s for s, one in by_strength.items() if one.loss.mean - 1 >= ACTS), None)


def _change(ratio: Estimate) -> str:
    if ratio.count == 0:
        return "—"
    return f"{100 * (ratio.mean - 1):+.2g} % {ratio.interval('+.2g', 100, -100)}"


def _strength(strength: float | None) -> str:
    return "none tried" if strength is None else f"{strength:g}"


def _table(by_strength: dict[float, Summary], precision: Precision, kind: Normalization, stage: str) -> Table:
    rows = [
        [
            f"{strength:g}",
            one.changed.percent(),
            *([one.updated.percent()] if stage == TRAINED else []),
            *(_change(one.attention[type]) for type in CONTEXT),
            *(_change(one.ig[type]) for type in CRITICAL),
            _change(one.loss),
            one.correct.percent(),
        ]
        for strength, one in by_strength.items()
    ]
    header = [
        _SYMBOL[kind],
        "elements moved",
        *(["weights changed"] if stage == TRAINED else []),
        *(f"attention, {TYPE_NAMES[type]}" for type in CONTEXT),
        *(f"IG, {TYPE_NAMES[type]}" for type in CRITICAL),
        "loss",
        "correct",
    ]
    caption = "How attention and IG of a token, and the loss, changed: means over samples, 95 % intervals."
    return Table(
        title=f"{stage.capitalize()}, {kind} normalization, {precision}", caption=caption, header=header, rows=rows
    )


def _drawing(curves: dict[Precision, dict[float, Summary]], kind: Normalization, stage: str) -> Drawing:
    figure, drawn = axes(_SYMBOL[kind], "attention over before")
    for line, (precision, by_strength) in zip(("-", "--"), curves.items(), strict=False):
        strengths = [strength for strength in by_strength if strength > 0]
        for type in CONTEXT:
            values = [by_strength[strength].attention[type].mean for strength in strengths]
            label = f"{TYPE_NAMES[type]}, {precision}"
            drawn.plot(strengths, values, line, color=COLORS[type], marker=MARKERS[type], markersize=4, label=label)
    drawn.set_xscale("log")
    drawn.axhline(1, color="#555555", linewidth=0.8)
    what = "by denoising alone" if stage == DENOISED else "by one training step on the denoised input"
    caption = (
        f"How attention from the answer to a token of each type changes {what}. The grey line, 1, is no effect; lines "
        "that leave it say from which strength on denoising acts, and where bf16 and fp32 part, rounding swallows "
        "the shift."
    )
    return Drawing(
        name=f"{stage}_{kind}", title=f"{stage.capitalize()}, {kind} normalization", caption=caption, figure=figure
    )
