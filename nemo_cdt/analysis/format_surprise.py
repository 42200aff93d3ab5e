"""Where no answer is right a measure may be of how answers are written, and not of what they say: that is told."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from nemo_cdt.analysis.analyzed_model import AnalyzedModel
from nemo_cdt.analysis.samples import Sample
from nemo_cdt.evaluation.answers import greedy

WRITTEN = 24
"""Tokens at most that the model is asked to write."""


def format_notice(analyzed: AnalyzedModel, samples: Sequence[Sample], tokenizer: PreTrainedTokenizerFast | None) -> str:
    """What to say where the model answers none of ``samples`` right; it shows the first."""
    first = samples[0]
    answer = first.answer.tolist()
    most = min(WRITTEN, len(answer) + WRITTEN // 2)
    written, labelled = (_text(ids, tokenizer) for ids in (greedy(analyzed.model, first.prompt, most), answer))
    none = f"None of the {len(samples)} answers" if len(samples) > 1 else "No answer"
    return (
        f"{none} is what greedy decoding writes (to {first.where} it writes {written}, and "
        f"the answer is {labelled}): what is measured here may be surprise at the format of the answers, and not what "
        "the model makes of the context. Write answers as the model does, or train it on their format first."
    )


def _text(ids: list[int], tokenizer: PreTrainedTokenizerFast | None) -> str:
    if tokenizer is None:
        return f"the tokens {ids}"
    return f'"{" ".join(tokenizer.decode(ids).split())}"'
