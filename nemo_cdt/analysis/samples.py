"""What is analysed: sequences whose answer is labelled and whose tokens have types. numpy only."""

from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from nemo_cdt.analysis.settings import Samples, Source
from nemo_cdt.data.documents import IGNORE, Document, TokenType
from nemo_cdt.data.jsonl import integers, is_text, parse, require_own_labels
from nemo_cdt.data.multihop import MultihopDocuments
from nemo_cdt.data.tokenizer import encode
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
        as_sample(_without(special, documents[index]), f"sample {index}", vocab_size) for index in range(len(documents))
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
    rows = np.flatnonzero(labels[1:] != IGNORE)
    if len(rows) == 0:
        raise ValueError(f"{where}: no token behind the first is labelled: there is no answer to analyse")
    for name, values in (("input_ids", ids), ("labels", labels[labels != IGNORE])):
        outside = values[(values < 0) | (values >= vocab_size)]
        if len(outside):
            raise ValueError(f"{where}: {name}: {outside[0]} is outside the model's vocabulary of {vocab_size}")
    types = np.zeros(len(ids), dtype=np.int64) if document.types is None else document.types.astype(np.int64)
    fed = slice(rows[-1] + 1)
    return Sample(where=where, input_ids=ids[fed], types=types[fed], rows=rows, answer=labels[rows + 1])


def _read(path: Path, count: int, tokenizer: PreTrainedTokenizerFast | None, vocab_size: int) -> list[Sample]:
    samples = []
    lines = ((number, line) for number, line in read_lines(path) if not line.isspace())
    for number, line in islice(lines, count):
        with blamed_on(f"{path}:{number}"):
            document = _document(parse(line), tokenizer)
        samples.append(as_sample(document, f"{path}:{number}", vocab_size))
    if not samples:
        raise ValueError(f"data.path={path}: no samples in it")
    return samples


def _document(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast | None) -> Document:
    if "input_ids" in row:
        return _of_tokens(row)
    if not ("text" in row and "answer" in row):
        raise ValueError(
            f"has {sorted(row)}; a sample has 'text', 'answer' and 'spans', or 'input_ids', 'labels' and 'token_types'"
        )
    if tokenizer is None:
        raise ValueError("'text' needs a tokenizer, and the model's folder has none: set tokenizer=DIR")
    return _of_text(row, tokenizer)


def _of_tokens(row: dict[str, Any]) -> Document:
    ids, labels = integers(row, "input_ids"), integers(row, "labels")
    types = row.get("token_types")
    if not isinstance(types, list):
        raise ValueError("'token_types' must be a list, of a type for each token")
    if not len(ids) == len(labels) == len(types):
        raise ValueError(f"{len(ids)} 'input_ids', {len(labels)} 'labels' and {len(types)} 'token_types'")
    require_own_labels(ids, labels)
    return Document(
        input_ids=ids,
        labels=labels,
        types=np.array([_type(name) for name in types], dtype=np.uint8),
    )


def _of_text(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> Document:
    """The answer is where its text occurs last; a token is of the span that its last character lies in."""
    text, answer = row["text"], row["answer"]
    if not (is_text(text) and is_text(answer) and answer):
        raise ValueError("'text' and 'answer' must be strings of valid Unicode, and the answer not empty")
    start = text.rfind(answer)
    if start < 0:
        raise ValueError(f"the answer {answer!r} does not occur in the text: a sample's text ends with its answer")
    encoding = encode(tokenizer, text, return_offsets_mapping=True, return_special_tokens_mask=True)
    last_N = np.array(encoding["offset_mapping"]).reshape(-1, 2)[:, 1] - 1
    ordinary_N = np.array(encoding["special_tokens_mask"]) == 0
    ids = np.array(encoding["input_ids"], dtype=np.int64)
    types = np.full(len(ids), TokenType.irrelevant, dtype=np.uint8)
    for first, stop, type in _spans(row.get("spans"), len(text)):
        types[ordinary_N & (first <= last_N) & (last_N < stop)] = type
    answered = ordinary_N & (start <= last_N) & (last_N < start + len(answer))
    types[answered] = TokenType.answer
    return Document(input_ids=ids, labels=np.where(answered, ids, IGNORE), types=types)


def _spans(spans: Any, length: int) -> list[tuple[int, int, TokenType]]:
    """In order, checked."""
    if not isinstance(spans, list):
        raise ValueError("'spans' must be a list of objects with 'start', 'end' and 'type', in characters of the text")
    found = []
    for span in spans:
        if not isinstance(span, dict) or not {type(span.get("start")), type(span.get("end"))} == {int}:
            raise ValueError(f"the span {span} has no integers 'start' and 'end'")
        first, stop = span["start"], span["end"]
        if not 0 <= first < stop <= length:
            raise ValueError(f"the span {first} to {stop} is not within the text of {length} characters")
        found.append((first, stop, _type(span.get("type"))))
    found.sort()
    for one, other in pairwise(found):
        if other[0] < one[1]:
            raise ValueError(f"the spans {one[0]} to {one[1]} and {other[0]} to {other[1]} overlap")
    return found


def _type(name: Any) -> TokenType:
    if not isinstance(name, str) or name not in TokenType.__members__:
        raise ValueError(f"{name!r} is no token type: {', '.join(TokenType.__members__)}")
    return TokenType[name]
