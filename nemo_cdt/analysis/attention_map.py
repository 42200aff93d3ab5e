"""Where each part of a sequence looks (Figure 14): one layer's attention between chunks, before and after training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.colors import LogNorm
from torch import Tensor

from nemo_cdt.analysis.attention import KNOWN, Call, attention_rows, head_chunks
from nemo_cdt.analysis.estimate import Estimate, estimate
from nemo_cdt.analysis.observe import shown
from nemo_cdt.analysis.result import Drawing, Result, Table, axes
from nemo_cdt.analysis.samples import CRITICAL, Sample
from nemo_cdt.analysis.settings import AttentionMap
from nemo_cdt.analysis.subject import Subject
from nemo_cdt.data.documents import TokenType
from nemo_cdt.report.heatmap import TYPE_NAMES


class LayerMap:
    """A :class:`~nemo_cdt.analysis.attention.Watch`: attention between chunks in one layer, and from the answer's rows.

    map_CC: the attention that a token of one chunk (row) pays to all tokens of another (column) together, mean over its
    tokens and over heads; each row sums to 1.  answer_N: that of the answer's rows, mean over them and over heads.
    """

    def __init__(self, layer: int, chunks: int, rows_R: Tensor) -> None:
        self.layer = layer
        self.map_CC = torch.zeros(chunks, chunks, dtype=torch.float64, device=rows_R.device)
        self.answer_N: Tensor | None = None
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


def chunk_of(tokens: int, chunks: int) -> Tensor:
    """Of each token, the index of the chunk it is in; sizes differ by one at most."""
    return torch.arange(tokens) * chunks // tokens


def layer_map(subject: Subject, sample: Sample, layer: int, chunks: int) -> LayerMap:
    """Forward only.

    Raises:
        ValueError: where a sample is shorter than the map, or the layer cannot be watched.
    """
    if len(sample) < chunks:
        raise ValueError(
            f"{sample.where} has {len(sample)} tokens: set attention_map.chunks to that or less, not {chunks}"
        )
    rows_R = torch.as_tensor(sample.rows, device=subject.device)
    watch = LayerMap(layer, chunks, rows_R)
    with torch.no_grad():
        subject.logits(subject.embed(sample.input_ids), rows_R[-1:], watch)
    if watch.answer_N is None:
        raise ValueError(
            f"layer {layer} of {type(subject.model).__name__} does not attend by transformers' interface; {KNOWN}"
        )
    return watch


def choose_layer(settings: AttentionMap, layers: int) -> int:
    if settings.layer is None:
        return 3 * layers // 4
    if not 0 <= settings.layer < layers:
        raise ValueError(f"attention_map.layer={settings.layer}: the model has layers 0 to {layers - 1}")
    return settings.layer


@dataclass(kw_only=True, slots=True)
class Maps:
    """Of one model. critical: of each sample, the attention of the answer's rows on all facts together.

    marked_C: chunks of the first sample that hold supporting facts.
    """

    map_CC: np.ndarray
    answer: dict[TokenType, Estimate]
    critical: list[float]
    marked_C: np.ndarray


def maps(subject: Subject, samples: Sequence[Sample], layer: int, chunks: int) -> Maps:
    """The map is that of the first sample; the answer's attention by type, summed over a type's tokens, is over all."""
    found = [layer_map(subject, sample, layer, chunks) for sample in shown(samples, "attention maps")]
    answers = [one.answer_N.cpu().numpy() for one in found if one.answer_N is not None]
    chunk_N = chunk_of(len(samples[0]), chunks).numpy()
    return Maps(
        map_CC=found[0].map_CC.cpu().numpy(),
        answer={
            type: estimate([float(a_N[s.of(type)].sum()) for a_N, s in zip(answers, samples, strict=True)])
            for type in TokenType
        },
        critical=[float(a_N[s.of(*CRITICAL)].sum()) for a_N, s in zip(answers, samples, strict=True)],
        marked_C=np.unique(chunk_N[samples[0].of(TokenType.supporting)]),
    )


def attention_map(before: Maps, after: Maps, layer: int) -> Result:
    gained = estimate(np.array(after.critical) - np.array(before.critical))
    least = max(1e-6, min(one.map_CC[one.map_CC > 0].min() for one in (before, after)))
    most = max(one.map_CC.max() for one in (before, after))
    names = [*(TYPE_NAMES[type] for type in TokenType)]
    rows = [
        [name, str(before.answer[type]), str(after.answer[type])] for name, type in zip(names, TokenType, strict=True)
    ]
    return Result(
        title="Where does each part of a sequence look, before and after training?",
        explanation=(
            f"Attention in layer {layer} (from 0), mean over its heads. The sequence is cut into {len(before.map_CC)} "
            "equal chunks; a cell says how much of its attention a token of one chunk (row) pays to all tokens of "
            "another (column), so that a row sums to 1. The last row is where question and answer look. Both models "
            "read the same samples."
        ),
        headline=[
            (str(estimate(before.critical)), "of the answer's attention is on facts, before"),
            (str(estimate(after.critical)), "after"),
            (str(gained), "gained, mean over samples"),
        ],
        tables=[
            Table(
                title="What the answer attends to",
                caption="Share of the attention of the positions that predict the answer, mean over heads and samples.",
                header=["token type", "before", "after"],
                rows=rows,
            )
        ],
        drawings=[_drawing(one, name, least, most) for name, one in (("before", before), ("after", after))],
        numbers={
            "layer": layer,
            "critical_gained": gained.json(),
            **{
                name: {
                    "map": one.map_CC.tolist(),
                    "answer": {type.name: e.json() for type, e in one.answer.items()},
                }
                for name, one in (("before", before), ("after", after))
            },
        },
    )


def _drawing(one: Maps, name: str, least: float, most: float) -> Drawing:
    figure, drawn = axes("attended chunk", "attending chunk")
    figure.set_size_inches(6.0, 5.0)
    shown_CC = np.where(one.map_CC > 0, one.map_CC, np.nan)
    image = drawn.imshow(shown_CC, cmap="YlOrRd", norm=LogNorm(least, most), interpolation="nearest")
    figure.colorbar(image, ax=drawn, label="share of attention")
    for chunk in one.marked_C:
        drawn.plot(chunk, len(one.map_CC) - 1, "o", color="#0072B2", fillstyle="none", markersize=7)
    drawn.grid(visible=False)
    caption = (
        f"The first sample, {name} training; redder is more attention, on one scale for both. Blue circles in the "
        "last row: chunks with supporting facts, to which the answer should look."
    )
    return Drawing(name=f"map_{name}", title=f"Attention {name} training", caption=caption, figure=figure)
