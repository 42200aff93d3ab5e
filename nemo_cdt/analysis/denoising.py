"""Where denoising begins to act, and where it breaks (Figures 4 and 8).

Noise tokens' embeddings are moved by hand against their gradient, as in training; attention, information flow and loss
are measured before, after, and once more after one optimizer step on the moved input, by the unmoved one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nemo_cdt.analysis.estimate import Estimate, estimate
from nemo_cdt.analysis.groups import heads_by_type
from nemo_cdt.analysis.observe import Observation, observe, shown
from nemo_cdt.analysis.result import COLORS, MARKERS, Drawing, Result, Table, axes
from nemo_cdt.analysis.samples import CONTEXT, CRITICAL, Sample
from nemo_cdt.analysis.settings import Denoise, NoiseBy, Optimizer
from nemo_cdt.analysis.subject import Subject
from nemo_cdt.config import Normalization, Precision
from nemo_cdt.data.documents import TokenType
from nemo_cdt.denoise import Denoising, scores, shift
from nemo_cdt.report.heatmap import TYPE_NAMES

BEFORE, DENOISED, TRAINED = "before", "denoised", "trained"


@dataclass(kw_only=True, slots=True)
class Setting:
    """``strength``: lr * beta of the gradient normalization, rho of the relative one; 0 denoises nothing."""

    precision: Precision
    normalization: Normalization
    strength: float


@dataclass(kw_only=True, slots=True)
class Effect:
    """Of one sample under one setting, at one stage. changed: share of the embedding's elements that moved.

    attention, ig: of a token of each type.
    """

    sample: str
    setting: Setting
    stage: str
    attention: dict[TokenType, float]
    ig: dict[TokenType, float]
    loss: float
    correct: bool
    changed: float


def shift_by_hand(
    subject: Subject, observation: Observation, grad_ND: Tensor, setting: Setting, noise: NoiseBy
) -> Tensor:
    """E' - E, fp32 [N, D]: :mod:`nemo_cdt.denoise`'s shift, on the noise tokens that ``noise`` names."""
    grad_SBH, embedding_SBH = grad_ND[:, None], subject.embed(observation.sample.input_ids)[:, None]
    noise_N = torch.as_tensor(noise_tokens(observation, noise), device=grad_ND.device)
    how = Denoising(normalization=setting.normalization, rho=setting.strength)
    return shift(grad_SBH, scores(grad_SBH), noise_N[:, None], embedding_SBH, setting.strength, how)[:, 0]


def noise_tokens(observation: Observation, by: NoiseBy) -> np.ndarray:
    """bool [N]."""
    if by is NoiseBy.oracle:
        return ~observation.sample.of(*CRITICAL)
    score_N = observation.gradient_N if by is NoiseBy.gradient else observation.ig_N
    return score_N < score_N.mean()


@contextmanager
def trained(subject: Subject, sample: Sample, shift_ND: Tensor | None, settings: Denoise) -> Iterator[None]:
    """The model after one step on the denoised sample (Eq. 4), all weights unfrozen; inside the block only."""
    weights = list(subject.model.parameters())
    kept = [weight.detach().to("cpu", copy=True) for weight in weights]
    optimizer: torch.optim.Optimizer
    try:
        subject.model.requires_grad_(True)
        if settings.optimizer is Optimizer.sgd:
            optimizer = torch.optim.SGD(weights, lr=settings.lr)
        else:
            optimizer = torch.optim.AdamW(weights, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0)
        ids_N, rows_R, answer_R = (
            torch.as_tensor(values, device=subject.device) for values in (sample.input_ids, sample.rows, sample.answer)
        )
        embedding: nn.Module = subject.model.get_input_embeddings()
        live_ND = embedding(ids_N)  # the table learns too
        moved_ND = live_ND if shift_ND is None else live_ND + shift_ND.to(live_ND.dtype)
        cross_entropy(subject.logits(moved_ND, rows_R), answer_R).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        subject.model.requires_grad_(False)
        yield
    finally:
        subject.model.requires_grad_(False)
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.grad = None
                weight.copy_(before)


def effects(subject: Subject, sample: Sample, precision: Precision, settings: Denoise, top_k: int) -> list[Effect]:
    """Of one sample: before, and under each setting after denoising and after training.

    ``trained`` at strength 0 is plain training: what a step does without denoising.
    """
    before, grad_ND = observe(subject, sample, top_k)
    plain = Setting(precision=precision, normalization=Normalization.gradient, strength=0.0)
    found = [_effect(plain, BEFORE, before, 0.0)]
    for setting in [plain, *_settings(precision, settings)]:
        shift_ND = shift_by_hand(subject, before, grad_ND, setting, settings.noise)
        changed = _changed(subject.embed(sample.input_ids), shift_ND)
        if setting.strength:
            found.append(_effect(setting, DENOISED, observe(subject, sample, top_k, shift_ND)[0], changed))
        if settings.optimizer is not Optimizer.none:
            with trained(subject, sample, shift_ND, settings):
                found.append(_effect(setting, TRAINED, observe(subject, sample, top_k)[0], changed))
    return found


def _settings(precision: Precision, settings: Denoise) -> list[Setting]:
    kinds = [(Normalization.gradient, settings.strengths), (Normalization.relative, settings.rhos)]
    return [
        Setting(precision=precision, normalization=kind, strength=strength)
        for kind, strengths in kinds
        for strength in strengths
    ]


def _changed(embedding_ND: Tensor, shift_ND: Tensor) -> float:
    moved_ND = embedding_ND + shift_ND.to(embedding_ND.dtype)
    return float((moved_ND != embedding_ND).float().mean())


def _effect(setting: Setting, stage: str, one: Observation, changed: float) -> Effect:
    return Effect(
        sample=one.sample.where,
        setting=setting,
        stage=stage,
        attention=heads_by_type(one.attention_LHT),
        ig=heads_by_type(one.ig_LHT),
        loss=one.loss,
        correct=one.correct,
        changed=changed,
    )


def denoise(load: Callable[[Precision], Subject], samples: Sequence[Sample], settings: Denoise, top_k: int) -> Result:
    """``load``: the model in a precision; one is in memory at a time."""
    found: list[Effect] = []
    for precision in settings.dtypes:
        subject = load(precision)
        for sample in shown(samples, f"denoising in {precision}"):
            found += effects(subject, sample, precision, settings, top_k)
        del subject
    return report(found, settings)


ACTS = 0.01
"""From this relative change of a type's attention on, denoising is said to act."""


@dataclass(kw_only=True, slots=True)
class Summary:
    """Means over samples. attention, ig: of each type, after over before; loss: after less before."""

    attention: dict[TokenType, Estimate]
    ig: dict[TokenType, Estimate]
    loss: Estimate
    correct: Estimate
    changed: Estimate

    def json(self) -> dict:
        by_type = {
            name: {type.name: one.json() for type, one in getattr(self, name).items()} for name in ("attention", "ig")
        }
        return by_type | {name: getattr(self, name).json() for name in ("loss", "correct", "changed")}


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
        loss=estimate([one.loss - first.loss for one, first in pairs]),
        correct=estimate([float(one.correct) for one in after]),
        changed=estimate([one.changed for one in after]),
    )


def report(found: Sequence[Effect], settings: Denoise) -> Result:
    result = Result(
        title="Where does denoising begin to act, and where does it break?",
        explanation=(
            "The embeddings of noise tokens are moved against their gradient, by hand and for one sample, as Context "
            "Denoising Training does in each step; then the model reads the sample again. Two ways to set how far: "
            "Eq. 3 subtracts the gradient times lr * beta (the paper: 5e-5), and the relative normalization moves "
            "each noise token by a share rho of its embedding's length. Attention and IG of a token of each type are "
            "given over what "
            "they were before: 1 is no effect. " + _NOISE[settings.noise]
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
        if strengths:
            _add(result, found, settings, kind, sorted(strengths), stages)
    return result


_NOISE = {
    NoiseBy.gradient: "Noise is what CDT calls noise: gradients shorter than their mean (Eq. 2).",
    NoiseBy.ig: "Noise is what has an IG below its mean (section 3.2).",
    NoiseBy.oracle: "Noise is every token that belongs to no fact: what perfect detection would say.",
}
_SYMBOL = {Normalization.gradient: "lr * beta", Normalization.relative: "rho"}


def _add(
    result: Result,
    found: Sequence[Effect],
    settings: Denoise,
    kind: Normalization,
    strengths: list[float],
    stages: list[str],
) -> None:
    for stage in stages:
        curves: dict[Precision, dict[float, Summary]] = {}
        for precision in settings.dtypes:
            plain = {0.0: summarise(found, precision, Normalization.gradient, 0.0, stage)} if stage == TRAINED else {}
            curves[precision] = plain | {s: summarise(found, precision, kind, s, stage) for s in strengths}
            result.tables.append(_table(curves[precision], precision, kind, stage))
            result.numbers.setdefault(precision.value, {}).setdefault(kind.value, {})[stage] = [
                {"strength": strength} | one.json() for strength, one in curves[precision].items()
            ]
            if stage == DENOISED:
                acts, breaks = begins(curves[precision]), breaks_at(curves[precision])
                result.headline.append((_strength(acts), f"{_SYMBOL[kind]} from which it acts in {precision}"))
                result.headline.append((_strength(breaks), f"{_SYMBOL[kind]} from which the loss rises in {precision}"))
        result.drawings.append(_drawing(curves, kind, stage))


def begins(by_strength: dict[float, Summary]) -> float | None:
    """The least strength that changes the attention to some type by :data:`ACTS`."""
    acting = (s for s, one in by_strength.items() if any(abs(e.mean - 1) >= ACTS for e in one.attention.values()))
    return next(acting, None)


def breaks_at(by_strength: dict[float, Summary]) -> float | None:
    """The least strength after which the loss is above what it was: past it, the gradient says nothing."""
    return next((s for s, one in by_strength.items() if one.loss.mean > 0), None)


def _strength(strength: float | None) -> str:
    return "none tried" if strength is None else f"{strength:g}"


def _table(by_strength: dict[float, Summary], precision: Precision, kind: Normalization, stage: str) -> Table:
    rows = [
        [
            f"{strength:g}",
            f"{100 * one.changed.mean:.3g} %",
            *(str(one.attention[type]) for type in CONTEXT),
            *(str(one.ig[type]) for type in CRITICAL),
            str(one.loss),
            f"{100 * one.correct.mean:.0f} %",
        ]
        for strength, one in by_strength.items()
    ]
    header = [
        _SYMBOL[kind],
        "elements moved",
        *(f"attention, {TYPE_NAMES[type]}" for type in CONTEXT),
        *(f"IG, {TYPE_NAMES[type]}" for type in CRITICAL),
        "loss less before",
        "correct",
    ]
    caption = "Attention and IG over what they were before: 1 is no effect. Means over samples, 95 % intervals."
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
