"""Where no answer is right a measure may be of how answers are written, and not of what they say: that is told."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerFast

from nemo_cdt.analysis.analyzed_model import AnalyzedModel
from nemo_cdt.analysis.samples import Sample

WRITTEN = 24
"""Tokens at most that the model is asked to write."""


def format_notice(analyzed: AnalyzedModel, samples: Sequence[Sample], tokenizer: PreTrainedTokenizerFast | None) -> str:
    """What to say where the model answers none of ``samples`` right; it shows the first."""
    first = samples[0]
    written, labelled = (_text(ids, tokenizer) for ids in (greedy(analyzed, first), first.answer.tolist()))
    return (
        f"None of the {len(samples)} answers is what greedy decoding writes (to {first.where} it writes {written}, and "
        f"the answer is {labelled}): what is measured here may be surprise at the format of the answers, and not what "
        "the model makes of the context. Write answers as the model does, or train it on their format first."
    )


def greedy(analyzed: AnalyzedModel, sample: Sample) -> list[int]:
    """The tokens that the model writes in place of the answer."""
    ids = sample.input_ids[: sample.rows[0] + 1].tolist()
    given = len(ids)
    with torch.no_grad():
        for _ in range(min(WRITTEN, len(sample.answer) + WRITTEN // 2)):
            last_R = torch.tensor([len(ids) - 1], device=analyzed.device)
            ids.append(int(analyzed.logits(analyzed.embed(ids), last_R)[0].argmax()))
    return ids[given:]


def _text(ids: list[int], tokenizer: PreTrainedTokenizerFast | None) -> str:
    if tokenizer is None:
        return f"the tokens {ids}"
    return f'"{" ".join(tokenizer.decode(ids).split())}"'
