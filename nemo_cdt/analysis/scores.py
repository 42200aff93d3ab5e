"""The measures of section 3: information flow (Figure 3b), fact retrieval (3a), and embedding gradients (Figure 5)."""

from collections.abc import Sequence

import numpy as np

from nemo_cdt.analysis.estimate import Estimate, ends, estimate, pearson, spearman
from nemo_cdt.analysis.groups import (
    ByType,
    as_json,
    blind_share,
    estimates,
    groups,
    heads_by_type,
    mean_by_type,
    shares,
    type_table,
)
from nemo_cdt.analysis.observe import Observation
from nemo_cdt.analysis.result import COLORS, MARKERS, Drawing, Result, Table, axes
from nemo_cdt.analysis.samples import CONTEXT, CRITICAL
from nemo_cdt.data.documents import TokenType
from nemo_cdt.report.heatmap import TYPE_NAMES

PLOTTED = 2000
"""Tokens of a type in a scatter plot at most."""

SHARE = (
    "The scores of a token of each type that a sample has, divided by their sum: {blind} each, the grey line, if the "
    "model did not care what a token is. Thin lines: 95 % bootstrap intervals over samples."
)


def ig(observations: Sequence[Observation]) -> Result:
    result = _score(
        observations,
        lambda one: heads_by_type(one.ig_LHT),
        name="ig",
        title="Which tokens inform the answer?",
        explanation=(
            "The information-flow score IG (Eq. 1) of a context token: its attention from the positions that predict "
            "the answer, times how much the loss of the answer depends on that attention (the size of its gradient). "
            "It is computed for each head of each layer, summed over the answer's tokens, averaged over heads and "
            "layers, and here over the tokens of a type. A high score of supporting facts says that the answer comes "
            "from them."
        ),
    )
    result.drawings.append(_layers(observations))
    result.numbers["by_layer_head_type"] = _per_head([one.ig_LHT for one in observations])
    return result


def fr(observations: Sequence[Observation], top_k: int) -> Result:
    result = _score(
        observations,
        lambda one: heads_by_type(one.fr_LHT),
        name="fr",
        title="Which tokens does attention retrieve?",
        explanation=(
            f"The fact-retrieval score FR of a token type: the share of its tokens that are among the {top_k} that a "
            "head attends to most while a token of the answer is predicted, averaged over the answer's tokens and "
            "over all heads of all layers. It says where the model looks, which need not be what it uses: compare "
            "with ig."
        ),
    )
    result.numbers |= {
        "top_k": top_k,
        "expected_at_random": estimate([min(1.0, top_k / len(one.sample)) for one in observations]).json(),
        "by_layer_head_type": _per_head([one.fr_LHT for one in observations]),
    }
    return result


def gradient(observations: Sequence[Observation]) -> Result:
    result = _score(
        observations,
        lambda one: mean_by_type(one.gradient_N, one.sample.types),
        name="gradient",
        title="Does the embedding's gradient tell what informs the answer?",
        explanation=(
            "Context Denoising Training cannot afford IG in every step and takes the L2 norm of the gradient of each "
            "token's embedding for it (the loss is the mean cross-entropy of the answer). Below its mean over the "
            "sequence a token is called noise (Eq. 2). Here is that norm by token type, the share called noise, and "
            "how well norm and IG agree, token by token: 1 if they rise together, 0 if they have nothing to do with "
            "each other."
        ),
    )
    by_group = groups(observations)
    noise = estimates(by_group, noise_by_type)
    base = estimate([float(is_noise(one).mean()) for one in observations])
    result.tables.append(
        type_table(
            "Share called noise",
            f"By Eq. 2. The base rate, over all tokens of a sequence, is {base}: detection that is blind calls every "
            "type noise as often.",
            noise,
        )
    )
    agreement = correlations(observations)
    rows = [[name, *map(str, pair)] for name, pair in agreement.items()]
    caption = "Correlation of gradient norm and IG over the tokens of a sample, mean over samples."
    result.tables.append(
        Table(title="Agreement with IG", caption=caption, header=["tokens", "Pearson", "Spearman"], rows=rows)
    )
    result.drawings.append(_scatter(observations))
    result.headline.append((str(agreement["all tokens"][1]), "rank correlation with IG, all tokens"))
    result.numbers |= {
        "noise": as_json(noise),
        "noise_base_rate": base.json(),
        "correlation": {
            group: {
                name: {"pearson": one.json(), "spearman": other.json()}
                for name, (one, other) in correlations(members).items()
            }
            for group, members in by_group.items()
        },
    }
    return result


def is_noise(one: Observation) -> np.ndarray:
    """Eq. 2, bool [N]."""
    return one.gradient_N < one.gradient_N.mean()


def noise_by_type(one: Observation) -> dict[TokenType, float]:
    return mean_by_type(is_noise(one).astype(float), one.sample.types)


def correlations(observations: Sequence[Observation]) -> dict[str, tuple[Estimate, Estimate]]:
    """(Pearson, Spearman) of gradient norm and IG for each type of context token, and over all fed tokens."""
    chosen = {TYPE_NAMES[type]: (type,) for type in CONTEXT} | {"all tokens": tuple(TokenType)}
    pairs = {}
    for name, types in chosen.items():
        both = [(one.gradient_N[one.sample.of(*types)], one.ig_N[one.sample.of(*types)]) for one in observations]
        pairs[name] = (estimate([pearson(*pair) for pair in both]), estimate([spearman(*pair) for pair in both]))
    return pairs


def _score(observations: Sequence[Observation], by_type: ByType, *, name: str, title: str, explanation: str) -> Result:
    """What the three have in common: the score and its share by token type, for right and wrong answers."""
    found = groups(observations)
    raw = estimates(found, by_type)
    share = estimates(found, lambda one: shares(by_type(one)))
    blind = blind_share(observations)
    caption = SHARE.format(blind=blind.percent())
    return Result(
        title=title,
        explanation=explanation,
        headline=[
            (one.percent(), f"share of {name} of a token, {TYPE_NAMES[type]} ({blind.percent()} if blind)")
            for type, one in share["all"].items()
            if type in CRITICAL and one.count
        ],
        tables=[
            type_table(
                f"Score {name} of a token", "Mean over a type's tokens and over samples, with 95 % intervals.", raw
            ),
            type_table("Shares", caption, share),
        ],
        drawings=[
            bars(
                f"{name}_by_type",
                f"Share of {name}, answers right and wrong",
                caption,
                f"share of the types' {name} (%)",
                share,
                blind=100 * blind.mean,
            )
        ],
        numbers={"score": as_json(raw), "share": as_json(share), "share_if_blind": blind.json()},
    )


def bars(
    name: str, title: str, caption: str, share: str, found: dict[str, dict[TokenType, Estimate]], blind: float
) -> Drawing:
    """Grouped by right and wrong answers; groups without a sample are left out.

    share: what the bars are, in percent.  blind: where a grey line is drawn, percent.
    """
    figure, drawn = axes("", share)
    present = [group for group, by_type in found.items() if any(one.count for one in by_type.values())]
    for index, type in enumerate(CONTEXT):
        chosen = [found[group][type] for group in present]
        drawn.bar(
            np.arange(len(present)) + 0.2 * (index - 1.5),
            [100 * one.mean for one in chosen],
            0.18,
            yerr=100 * ends(chosen),
            color=COLORS[type],
            label=TYPE_NAMES[type],
            error_kw={"elinewidth": 0.8},
        )
    drawn.axhline(blind, color="#555555", linewidth=0.8)
    counts = {group: max(one.count for one in found[group].values()) for group in present}
    labels = [f"{'all' if group == 'all' else f'{group} answers'} ({counts[group]})" for group in present]
    drawn.set_xticks(np.arange(len(present)), labels)
    return Drawing(name=name, title=title, caption=caption, figure=figure)


def _layers(observations: Sequence[Observation]) -> Drawing:
    figure, drawn = axes("layer", "IG of a token")
    mean_LT = np.array(_per_head([one.ig_LHT for one in observations])).mean(axis=1)
    for index, type in enumerate(CONTEXT):
        values = np.where(mean_LT[:, index] > 0, mean_LT[:, index], np.nan)
        drawn.plot(values, color=COLORS[type], marker=MARKERS[type], markersize=4, label=TYPE_NAMES[type])
    drawn.set_yscale("log")
    caption = "The score before layers are averaged: at which depth the answer takes up what the facts say."
    return Drawing(name="ig_by_layer", title="Information flow by layer", caption=caption, figure=figure)


def _scatter(observations: Sequence[Observation]) -> Drawing:
    figure, drawn = axes("IG", "norm of the embedding's gradient")
    rng = np.random.default_rng(0)
    for type in reversed(CONTEXT):
        ig_M = np.concatenate([one.ig_N[one.sample.of(type)] for one in observations])
        norm_M = np.concatenate([one.gradient_N[one.sample.of(type)] for one in observations])
        kept = rng.permutation(np.flatnonzero((ig_M > 0) & (norm_M > 0)))[:PLOTTED]
        drawn.scatter(
            ig_M[kept], norm_M[kept], s=8, color=COLORS[type], marker=MARKERS[type], alpha=0.5, label=TYPE_NAMES[type]
        )
    drawn.set_xscale("log")
    drawn.set_yscale("log")
    caption = (
        f"A dot is a token, at most {PLOTTED:,} of a type. If the gradient may stand for IG, dots lie along a rising "
        "line, and facts at its upper end. Zeros do not fit on log axes and are left out."
    )
    return Drawing(name="gradient_and_ig", title="Gradient and information flow", caption=caption, figure=figure)


def _per_head(by_sample: list[np.ndarray]) -> list:
    """Mean over samples [L][H][type of CONTEXT]; 0 where a type never occurs."""
    stacked = np.stack(by_sample)[..., CONTEXT]
    count = np.maximum(1, (~np.isnan(stacked)).sum(axis=0))
    return (np.nansum(stacked, axis=0) / count).tolist()
