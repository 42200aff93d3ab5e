"""What is analysed: sequences whose answer is labelled and whose tokens have types. numpy only."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from nemo_cdt.analysis import rows
from nemo_cdt.analysis.settings import Samples, Source
from nemo_cdt.data.documents import IGNORE, Document, TokenType
from nemo_cdt.data.jsonl import parse
from nemo_cdt.data.multihop import MultihopDocuments, MultihopSample
from nemo_cdt.utils.reading import blamed_on, read_lines

CONTEXT = [TokenType.supporting, TokenType.interference, TokenType.irrelevant, TokenType.low_frequency]
"""The paper's types r, in its order; question and answer tokens are analysed but are no context."""

CRITICAL = [TokenType.supporting, TokenType.interference]


@dataclass(kw_only=True, slots=True)
class Sample:
    """A document as a model is fed it. ``where``: what to call it in a message.

    input_ids, types: [N] of the fed tokens.  rows: [R] the positions whose next token is the answer's.
    answer: [R] those tokens.
    """

    where: str
    input_ids: np.ndarray
    types: np.ndarray
    rows: np.ndarray
    answer: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def prompt(self) -> list[int]:
        """The tokens before the answer."""
        return self.input_ids[: self.rows[0] + 1].tolist()

    def of(self, *types: TokenType) -> np.ndarray:
        """bool [N]."""
        return np.isin(self.types, types)


def load_samples(
    settings: Samples, tokenizer: PreTrainedTokenizerFast | None, vocab_size: int, seed: int
) -> list[Sample]:
    """``settings.samples`` of them, fewer where a file has fewer.

    Raises:
        ValueError: for a row that cannot be used, with ``file:line``.
    """
    if settings.name is Source.jsonl:
        assert settings.path is not None
        return _read(Path(settings.path), settings.samples, tokenizer, vocab_size)
    if tokenizer is None:
        raise ValueError(
            "the model's folder has no tokenizer: set tokenizer=DIR, or tokenizer=byte for a model of bytes"
        )
    return [sample for _, sample in generated(settings, tokenizer, vocab_size, seed)]


def generated(
    settings: Samples, tokenizer: PreTrainedTokenizerFast, vocab_size: int, seed: int
) -> list[tuple[MultihopSample, Sample]]:
    """``settings.samples`` questions of ``multihop``, each as text and as a model is fed it."""
    documents = MultihopDocuments(
        tokenizer,
        seq_length=settings.seq_length,
        seed=seed,
        size=settings.samples,
        **settings.questions(),
        haystack=settings.path,
        split="validation",
    )
    special = tokenizer.all_special_ids
    return [
        (text, as_sample(_without(special, document), f"sample {index}", vocab_size))
        for index, (text, document) in enumerate(map(documents.drawn, range(len(documents))))
    ]


def _without(special: list[int], document: Document) -> Document:
    """The eos after an answer is no part of it: a model that was never trained to end there is not wrong."""
    labels = np.where(np.isin(document.labels, special), IGNORE, document.labels)
    return Document(input_ids=document.input_ids, labels=labels, types=document.types)


def as_sample(document: Document, where: str, vocab_size: int) -> Sample:
    """What comes after the last labelled token is left out: it tells nothing, and its gradients are zero.

    Raises:
        ValueError: where nothing is labelled, or a token is none of the model's.
    """
    ids, labels = document.input_ids, document.labels
    predicting = np.flatnonzero(labels[1:] != IGNORE)
    if len(predicting) == 0:
        raise ValueError(f"{where}: no token behind the first is labelled: there is no answer to analyse")
    for name, values in (("input_ids", ids), ("labels", labels[labels != IGNORE])):
        outside = values[(values < 0) | (values >= vocab_size)]
        if len(outside):
            raise ValueError(f"{where}: {name}: {outside[0]} is outside the model's vocabulary of {vocab_size}")
    types = np.zeros(len(ids), dtype=np.int64) if document.types is None else document.types.astype(np.int64)
    fed = slice(predicting[-1] + 1)
    return Sample(where=where, input_ids=ids[fed], types=types[fed], rows=predicting, answer=labels[predicting + 1])


def check_rows(path: Path) -> None:
    """Raise ValueError, with ``file:line``, for the first row of all that cannot be analysed."""
    for number, line in _lines(path):
        with blamed_on(f"{path}:{number}"):
            rows.check(parse(line))


def _read(path: Path, count: int, tokenizer: PreTrainedTokenizerFast | None, vocab_size: int) -> list[Sample]:
    samples = []
    for number, line in islice(_lines(path), count):
        with blamed_on(f"{path}:{number}"):
            row = parse(line)
            rows.check(row)
            document = rows.document(row, tokenizer)
        samples.append(as_sample(document, f"{path}:{number}", vocab_size))
    if not samples:
        raise ValueError(f"data.path={path}: no samples in it")
    return samples


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Those that are not blank."""
    return ((number, line) for number, line in read_lines(path) if not line.isspace())
