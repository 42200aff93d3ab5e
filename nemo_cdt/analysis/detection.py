"""Which method finds the facts (Figure 7): the paper's comparison, with base rates, precision, recall and ranking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

import numpy as np

from nemo_cdt.analysis.estimate import Estimate, auc, estimate
from nemo_cdt.analysis.groups import groups
from nemo_cdt.analysis.observe import Observation
from nemo_cdt.analysis.result import COLORS, Drawing, Result, Table, axes
from nemo_cdt.analysis.samples import CONTEXT, CRITICAL
from nemo_cdt.data.documents import TokenType
from nemo_cdt.evaluation.longppl import KeyTokens
from nemo_cdt.evaluation.shares import critical
from nemo_cdt.report.heatmap import TYPE_NAMES

METHODS = {
    "attention": "attention",
    "longppl": "LongPPL",
    "gradient": "gradient (CDT)",
    "ig": "information flow (IG)",
}
BASE = "all context tokens"


@dataclass(kw_only=True, slots=True)
class Detected:
    """What one method made of one sample's context.

    top: share of each type among the k tokens that score highest, for LongPPL among its key tokens.
    precision, recall: of critical tokens among those detected: score at or above its mean over the sequence (Eq. 2),
    for LongPPL its key tokens.  auc: of the score, for LongPPL what the long context adds, nan without a key token.
    """

    top: dict[TokenType, float]
    precision: float
    recall: float
    auc: float


def detected(score_N: np.ndarray, types_N: np.ndarray, top_k: int, key_N: np.ndarray | None = None) -> Detected:
    """``key_N``: the tokens a method detects by a rule of its own, in place of the top k and of the mean."""
    context_N = np.isin(types_N, CONTEXT)
    critical_N = np.isin(types_N, CRITICAL)
    if key_N is None:
        ranked = np.argsort(np.where(context_N, -score_N, np.inf), kind="stable")
        top_N = np.zeros(len(score_N), dtype=bool)
        top_N[ranked[: min(top_k, int(context_N.sum()))]] = True
        found_N = critical(score_N)
    else:
        top_N = found_N = key_N
    top_N, found_N = top_N & context_N, found_N & context_N
    return Detected(
        top={type: _share(types_N[top_N] == type) for type in CONTEXT},
        precision=_share(critical_N[found_N]),
        recall=_share(found_N[critical_N]),
        auc=auc(score_N[context_N], critical_N[context_N]) if key_N is None or key_N.any() else np.nan,
    )


def _share(chosen: np.ndarray) -> float:
    return float(chosen.mean()) if len(chosen) else np.nan


def by_method(one: Observation, key: KeyTokens | None, top_k: int) -> dict[str, Detected]:
    """For one sample; LongPPL where its key tokens are known."""
    types_N = one.sample.types
    found = {
        "attention": detected(one.attention_N, types_N, top_k),
        "gradient": detected(one.gradient_N, types_N, top_k),
        "ig": detected(one.ig_N, types_N, top_k),
    }
    if key is not None:
        found["longppl"] = detected(key.gain_N, types_N, top_k, key.key_N)
    return {name: found[name] for name in METHODS if name in found}


def detection(observations: Sequence[Observation], keys: Sequence[KeyTokens] | None, top_k: int) -> Result:
    """``keys``: LongPPL's, in the order of the observations; None leaves LongPPL out."""
    known = keys if keys is not None else [None] * len(observations)
    per_sample = {id(one): by_method(one, key, top_k) for one, key in zip(observations, known, strict=True)}
    base = _base_rate(observations)
    result = Result(
        title="Which method finds the facts?",
        explanation=(
            f"Each method names the {top_k} context tokens that matter most to the answer by its own score; LongPPL "
            "names its key tokens, however many. The facts are known, so one can count what each has found. Critical "
            "are the tokens of supporting and interference facts. Beside every method stands what a blind choice "
            "would find: the share that each type has of the context."
        ),
    )
    for group, members in groups(observations).items():
        if not members:
            continue
        top, quality = _estimates(members, per_sample)
        result.numbers[group] = _json(top, quality)
        named = "" if group == "all" else f", {group} answers"
        result.tables += [_top_table(top, base, top_k, named, len(members)), _quality_table(quality, base, named)]
        if group == "all":
            result.drawings.append(_drawing(top, base, top_k))
            best = max(
                quality, key=lambda name: -1 if np.isnan(quality[name]["auc"].mean) else quality[name]["auc"].mean
            )
            result.headline = [
                (f"{one.mean:.3f}", f"AUC of {METHODS[name]}{', the best' if name == best else ''}")
                if (one := quality[name]["auc"]).count
                else ("—", f"AUC of {METHODS[name]}: no key token" if name == "longppl" else f"AUC of {METHODS[name]}")
                for name in quality
            ]
    result.numbers["base_rate"] = {type.name: one.json() for type, one in base.items()}
    if empty := sum(not key.key_N.any() for key in keys or ()):
        result.notices.append(
            f"LongPPL found no key token in {empty} of {len(known)} samples; they are left out of its shares, "
            "precision and AUC."
        )
    return result


def _base_rate(observations: Sequence[Observation]) -> dict[TokenType, Estimate]:
    types = [one.sample.types[one.sample.of(*CONTEXT)] for one in observations]
    return {type: estimate([float((types_M == type).mean()) for types_M in types]) for type in CONTEXT}


def _estimates(
    members: Sequence[Observation], per_sample: Mapping[int, dict[str, Detected]]
) -> tuple[dict[str, dict[TokenType, Estimate]], dict[str, dict[str, Estimate]]]:
    top, quality = {}, {}
    for name in per_sample[id(members[0])]:
        found = [per_sample[id(one)][name] for one in members]
        top[name] = {type: estimate([one.top[type] for one in found]) for type in CONTEXT}
        quality[name] = {
            figure: estimate([getattr(one, figure) for one in found]) for figure in ("precision", "recall", "auc")
        }
    return top, quality


def _top_table(
    top: dict[str, dict[TokenType, Estimate]], base: dict[TokenType, Estimate], top_k: int, named: str, count: int
) -> Table:
    rows = [[METHODS[name], *(str(by_type[type]) for type in CONTEXT)] for name, by_type in top.items()]
    return Table(
        title=f"What the top {top_k} are{named}",
        caption=f"Share of each type among the tokens found, mean over {count} sample{'s' * (count > 1)}. The last row "
        "is the base rate.",
        header=["method", *(TYPE_NAMES[type] for type in CONTEXT)],
        rows=[*rows, [BASE, *(str(base[type]) for type in CONTEXT)]],
    )


def _quality_table(quality: dict[str, dict[str, Estimate]], base: dict[TokenType, Estimate], named: str) -> Table:
    blind = sum(base[type].mean for type in CRITICAL)
    rows = [[METHODS[name], *(str(one) for one in figures.values())] for name, figures in quality.items()]
    return Table(
        title=f"Critical tokens found{named}",
        caption=(
            "Detected is what scores at or above the mean of the sequence, as in Eq. 2, for LongPPL its key tokens. "
            "Precision: how much of that is critical. Recall: how much of what is critical is detected. AUC: how "
            "likely a critical token scores above another, whatever the line; 0.5 if blind."
        ),
        header=["method", "precision", "recall", "AUC"],
        rows=[*rows, ["a blind choice", f"{blind:.3g}", "the share chosen", "0.5"]],
    )


def _drawing(top: dict[str, dict[TokenType, Estimate]], base: dict[TokenType, Estimate], top_k: int) -> Drawing:
    figure, drawn = axes("", "share of detected tokens (%)")
    columns = [*((METHODS[name], by_type) for name, by_type in top.items()), (BASE, base)]
    below = np.zeros(len(columns))
    for type in CONTEXT:
        share = np.nan_to_num([100 * by_type[type].mean for _, by_type in columns])
        drawn.bar(np.arange(len(columns)), share, 0.6, bottom=below, color=COLORS[type], label=TYPE_NAMES[type])
        below += share
    drawn.set_xticks(np.arange(len(columns)), [fill(name, 12) for name, _ in columns])
    drawn.set_ylim(0, 100)
    caption = (
        f"Of the {top_k} tokens that each method ranks highest (LongPPL: its key tokens), which are facts? The right "
        "column is what a blind choice finds: a method is as good as it differs from that one."
    )
    return Drawing(name="detection", title="What each method detects", caption=caption, figure=figure)


def _json(top: dict[str, dict[TokenType, Estimate]], quality: dict[str, dict[str, Estimate]]) -> dict:
    return {
        name: {
            "top": {type.name: one.json() for type, one in top[name].items()},
            **{figure: one.json() for figure, one in quality[name].items()},
        }
        for name in top
    }
