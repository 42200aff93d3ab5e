"""One sequence through the model, forward and backward: everything that the measures are made of."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from nemo_cdt.analysis.analyzed_model import AnalyzedModel
from nemo_cdt.analysis.attention import KNOWN
from nemo_cdt.analysis.flow import TYPES, AnswerRows
from nemo_cdt.analysis.samples import Sample
from nemo_cdt.evaluation.answers import is_right
from nemo_cdt.objectives.cdt.denoise import scores

T = TypeVar("T")
LINES = 20
"""About so many are printed where there is no terminal."""


@dataclass(kw_only=True, slots=True)
class Observation:
    """What one sample showed. N fed tokens, L layers, H heads, T token types.

    correct: greedy decoding writes the answer: it does when each of its tokens is the likeliest after those before it.
    attention_N: mean over layers, heads and the answer's rows.  ig_N: mean over layers and heads, sum over the rows.
    gradient_N: L2 norms of the embedding's gradient.
    ig_LHT, attention_LHT: mean over a type's tokens.  fr_LHT: share of a type's tokens in the top k of a row, mean over
    the rows. All three are nan for types that do not occur.
    """

    sample: Sample
    loss: float
    correct: bool
    attention_N: np.ndarray
    ig_N: np.ndarray
    gradient_N: np.ndarray
    attention_LHT: np.ndarray
    ig_LHT: np.ndarray
    fr_LHT: np.ndarray


def observe(
    analyzed: AnalyzedModel, sample: Sample, top_k: int, shift_ND: Tensor | None = None
) -> tuple[Observation, Tensor]:
    """The observation, and the gradient of the embedding [N, D] with it.

    shift_ND: added to the embedding first, and rounded to its dtype.

    Raises:
        ValueError: where the model's attention does not pass by our function once a layer.
    """
    embedding_ND = analyzed.embed(sample.input_ids)
    if shift_ND is not None:
        embedding_ND = embedding_ND + shift_ND.to(embedding_ND.dtype)
    leaf_ND = embedding_ND.requires_grad_(True)
    rows_R, answer_R, types_N = (
        torch.as_tensor(values, device=analyzed.device) for values in (sample.rows, sample.answer, sample.types)
    )
    watch = AnswerRows(rows_R, types_N, top_k)
    logits_RV = analyzed.logits(leaf_ND, rows_R, watch)
    if watch.called != set(range(analyzed.layers)):
        raise ValueError(
            f"{type(analyzed.model).__name__} has {analyzed.layers} layers, of which {len(watch.called)} attend "
            f"through transformers' attention interface; {KNOWN}"
        )
    loss = cross_entropy(logits_RV, answer_R)
    if not loss.isfinite():
        raise ValueError(f"{sample.where}: the loss of its answer is {loss.item()} in {leaf_ND.dtype}: set dtype=fp32")
    loss.backward()
    assert leaf_ND.grad is not None
    assert watch.seen == watch.called
    count_T = np.bincount(sample.types, minlength=TYPES)
    rows, per_head = len(sample.rows), analyzed.layers * analyzed.heads
    attention_LHT, ig_LHT, retrieved_LHT = watch.by_head()
    return Observation(
        sample=sample,
        loss=loss.item(),
        correct=bool(is_right(logits_RV, answer_R)),
        attention_N=watch.attention_N.cpu().numpy() / (per_head * rows),
        ig_N=watch.ig_N.cpu().numpy() / per_head,
        gradient_N=scores(leaf_ND.grad).double().cpu().numpy(),
        attention_LHT=_mean(attention_LHT, count_T * rows),
        ig_LHT=_mean(ig_LHT, count_T),
        fr_LHT=_mean(retrieved_LHT, count_T * rows),
    ), leaf_ND.grad


def observe_all(analyzed: AnalyzedModel, samples: Sequence[Sample], top_k: int) -> list[Observation]:
    return [observe(analyzed, sample, top_k)[0] for sample in shown(samples, "samples", len(samples))]


def _mean(sums_LHT: Tensor, count_T: np.ndarray) -> np.ndarray:
    return sums_LHT.cpu().numpy() / np.where(count_T > 0, count_T, np.nan)


def shown(items: Iterable[T], name: str, count: int) -> Iterator[T]:
    """``items``, ``count`` of them, with a bar in a terminal and a line now and then elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(items, desc=name, total=count, leave=False)
        return
    for done, item in enumerate(items, 1):
        yield item
        if done == count or done % max(1, count // LINES) == 0:
            print(f"{name}: {done} of {count}", file=sys.stderr, flush=True)
