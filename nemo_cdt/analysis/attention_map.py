"""Where each part of a sequence looks (Figure 14): one layer's attention between chunks, before and after training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.colors import LogNorm
from torch import Tensor

from nemo_cdt.analysis.analyzed_model import AnalyzedModel
from nemo_cdt.analysis.attention import KNOWN, Call, attention_rows, head_chunks
from nemo_cdt.analysis.estimate import Estimate, estimate
from nemo_cdt.analysis.groups import as_json, groups
from nemo_cdt.analysis.observe import shown
from nemo_cdt.analysis.result import Drawing, Result, Table, axes
from nemo_cdt.analysis.samples import CRITICAL, Sample
from nemo_cdt.analysis.settings import AttentionMap
from nemo_cdt.data.documents import TokenType
from nemo_cdt.report.heatmap import TYPE_NAMES


class LayerMap:
    """A :class:`~nemo_cdt.analysis.attention.Watch`: attention between chunks in one layer, and from the answer's rows.

    map_CC: the attention that a token of one chunk (row) pays to all tokens of another (column) together, mean over its
    tokens and over heads; each row sums to 1.  answer_N: that of the answer's rows, mean over them and over heads.
    uniform_N: what answer_N is where each row attends to all that it sees alike.
    """

    def __init__(self, layer: int, chunks: int, rows_R: Tensor) -> None:
        self.layer = layer
        self.map_CC = torch.zeros(chunks, chunks, dtype=torch.float64, device=rows_R.device)
        self.answer_N: Tensor | None = None
        self.uniform_N: Tensor | None = None
        self._rows_R = rows_R

    def __call__(self, call: Call, output: Tensor) -> Tensor:
        if call.layer == self.layer:
            self._look(call)
        return output

    def _look(self, call: Call) -> None:
        heads, tokens = call.query.shape[:2]
        chunk_N = chunk_of(tokens, len(self.map_CC)).to(call.query.device)
        by_row_NC = torch.zeros(tokens, len(self.map_CC), dtype=torch.float64, device=call.query.device)
        self.answer_N = torch.zeros(tokens, dtype=torch.float64, device=call.query.device)
        at_N = torch.arange(tokens, device=call.query.device)
        answering_N = torch.isin(at_N, self._rows_R)
        for group, those, rows in head_chunks(call, tokens):
            attention_HRN = attention_rows(
                call.query[those, rows], call.key[group], at_N[rows], call.scaling, call.window
            )
            sum_RN = attention_HRN.sum(dim=0)
            by_row_NC[rows].index_add_(1, chunk_N, sum_RN.double())
            self.answer_N += sum_RN[answering_N[rows]].sum(dim=0, dtype=torch.float64)
        self.map_CC.index_add_(0, chunk_N, by_row_NC / heads)
        self.map_CC /= torch.bincount(chunk_N, minlength=len(self.map_CC))[:, None]
        self.answer_N /= heads * len(self._rows_R)
        self.uniform_N = uniform(self._rows_R, tokens, call.window)


def uniform(rows_R: Tensor, tokens: int, window: int | None) -> Tensor:
    """The mean over ``rows_R`` of attention that is the same on every token that a row sees: [tokens]."""
    seen_R = (rows_R + 1).clamp(max=window or tokens)
    steps = torch.zeros(tokens + 1, dtype=torch.float64, device=rows_R.device)  # of a sum: a row's share begins, ends
    steps.index_add_(0, rows_R + 1 - seen_R, 1 / seen_R.double())
    steps.index_add_(0, rows_R + 1, -1 / seen_R.double())
    return steps.cumsum(0)[:-1] / len(rows_R)


def chunk_of(tokens: int, chunks: int) -> Tensor:
    """Of each token, the index of the chunk it is in; sizes differ by one at most."""
    return torch.arange(tokens) * chunks // tokens


@dataclass(kw_only=True, slots=True)
class Looks:
    """Where the answer of one sample looks: the attention of its rows on all tokens of a type together.

    uniform: the same, did they attend alike to all that they see.  correct: as an observation's.
    """

    answer: dict[TokenType, float]
    uniform: dict[TokenType, float]
    correct: bool

    @property
    def critical(self) -> float:
        """On all facts."""
        return sum(self.answer[type] for type in CRITICAL)


def layer_map(analyzed: AnalyzedModel, sample: Sample, layer: int, chunks: int) -> tuple[LayerMap, Looks]:
    """Forward only.

    Raises:
        ValueError: where a sample is shorter than the map, or the layer cannot be watched.
    """
    if len(sample) < chunks:
        raise ValueError(
            f"{sample.where} has {len(sample)} tokens: set attention_map.chunks to that or less, not {chunks}"
        )
    rows_R = torch.as_tensor(sample.rows, device=analyzed.device)
    watch = LayerMap(layer, chunks, rows_R)
    with torch.no_grad():
        said_R = analyzed.logits(analyzed.embed(sample.input_ids), rows_R, watch).argmax(dim=-1)
    if watch.answer_N is None or watch.uniform_N is None:
        raise ValueError(
            f"layer {layer} of {type(analyzed.model).__name__} does not attend by transformers' interface; {KNOWN}"
        )
    answer_N, uniform_N = watch.answer_N.cpu().numpy(), watch.uniform_N.cpu().numpy()
    return watch, Looks(
        answer={type: float(answer_N[sample.of(type)].sum()) for type in TokenType},
        uniform={type: float(uniform_N[sample.of(type)].sum()) for type in TokenType},
        correct=bool((said_R.cpu().numpy() == sample.answer).all()),
    )


def choose_layer(settings: AttentionMap, layers: int) -> int:
    if settings.layer is None:
        return 3 * layers // 4
    if not 0 <= settings.layer < layers:
        raise ValueError(f"attention_map.layer={settings.layer}: the model has layers 0 to {layers - 1}")
    return settings.layer


@dataclass(kw_only=True, slots=True)
class Maps:
    """Of one model. map_CC: of the first sample; marked_C: its chunks that hold supporting facts.  looks: of all."""

    map_CC: np.ndarray
    marked_C: np.ndarray
    looks: list[Looks]

    def critical(self) -> list[float]:
        return [one.critical for one in self.looks]


def maps(analyzed: AnalyzedModel, samples: Sequence[Sample], layer: int, chunks: int) -> Maps:
    found = [layer_map(analyzed, sample, layer, chunks) for sample in shown(samples, "attention maps", len(samples))]
    chunk_N = chunk_of(len(samples[0]), chunks).numpy()
    return Maps(
        map_CC=found[0][0].map_CC.cpu().numpy(),
        marked_C=np.unique(chunk_N[samples[0].of(TokenType.supporting)]),
        looks=[looks for _, looks in found],
    )


def attention_map(before: Maps, after: Maps, layer: int) -> Result:
    gained = estimate(np.array(after.critical()) - np.array(before.critical()))
    blind = {type: estimate([one.uniform[type] for one in before.looks]) for type in TokenType}
    by_group = {name: _by_group(one) for name, one in (("before", before), ("after", after))}
    least = max(1e-6, min(one.map_CC[one.map_CC > 0].min() for one in (before, after)))
    most = max(one.map_CC.max() for one in (before, after))
    return Result(
        title="Where does each part of a sequence look, before and after training?",
        explanation=(
            f"Attention in layer {layer} (from 0), mean over its heads. The sequence is cut into {len(before.map_CC)} "
            "equal chunks; a cell says how much of its attention a token of one chunk (row) pays to all tokens of "
            "another (column), so that a row sums to 1. The last row is where question and answer look. Both models "
            "read the same samples. The base rate is what each kind of token would get if the positions that predict "
            "the answer attended alike to every token that they see."
        ),
        headline=[
            (str(estimate(before.critical())), "of the answer's attention is on facts, before"),
            (str(estimate(after.critical())), "after"),
            (f"{sum(blind[type].mean for type in CRITICAL):.3g}", "if it were uniform: the base rate"),
            (str(gained), "gained, mean over samples"),
        ],
        tables=[
            _table(group, blind, by_group["before"][group], by_group["after"][group])
            for group, members in groups([*before.looks, *after.looks]).items()
            if members
        ],
        drawings=[_drawing(one, name, least, most) for name, one in (("before", before), ("after", after))],
        numbers={
            "layer": layer,
            "critical_gained": gained.json(),
            "base_rate": {type.name: one.json() for type, one in blind.items()},
            **{
                name: {"map": one.map_CC.tolist(), "answer": as_json(by_group[name])}
                for name, one in (("before", before), ("after", after))
            },
        },
    )


def _by_group(found: Maps) -> dict[str, dict[TokenType, Estimate]]:
    """The answer's attention to a type, over all samples, and over those that this model answers right and wrong."""
    return {
        name: {type: estimate([one.answer[type] for one in members]) for type in TokenType}
        for name, members in groups(found.looks).items()
    }


def _table(
    group: str, blind: dict[TokenType, Estimate], before: dict[TokenType, Estimate], after: dict[TokenType, Estimate]
) -> Table:
    rows = [[TYPE_NAMES[type], str(blind[type]), str(before[type]), str(after[type])] for type in TokenType]
    counts = [one[TokenType.supporting].count for one in (before, after)]
    return Table(
        title=f"What the answer attends to{'' if group == 'all' else f', {group} answers'}",
        caption=(
            "Share of the attention of the positions that predict the answer, mean over heads and samples: "
            f"{counts[0]} before, {counts[1]} after{'' if group == 'all' else ', by what each model answers'}. The "
            "base rate is uniform attention, over all samples."
        ),
        header=["token type", "base rate", "before", "after"],
        rows=rows,
    )


def _drawing(one: Maps, name: str, least: float, most: float) -> Drawing:
    figure, drawn = axes("attended chunk", "attending chunk")
    figure.set_size_inches(6.0, 5.0)
    shown_CC = np.where(one.map_CC > 0, one.map_CC, np.nan)
    image = drawn.imshow(shown_CC, cmap="YlOrRd", norm=LogNorm(least, most), interpolation="nearest")
    even = 1 / len(one.map_CC)
    figure.colorbar(image, ax=drawn, label="share of a row's attention").ax.axhline(even, color="#0072B2")
    for chunk in one.marked_C:
        drawn.plot(chunk, len(one.map_CC) - 1, "o", color="#0072B2", fillstyle="none", markersize=7)
    drawn.grid(visible=False)
    caption = (
        f"The first sample, {name} training; redder is more attention, on one scale for both. Blue circles in the "
        "last row: chunks with supporting facts, to which the answer should look. The line on the scale, "
        f"{100 * even:.2g} %, is what each chunk of the last row would get of uniform attention over all of them."
    )
    return Drawing(name=f"map_{name}", title=f"Attention {name} training", caption=caption, figure=figure)
