"""``nemo-cdt inspect``: rows as a model is fed them: tokens, what is labelled, where documents begin."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Optional

import numpy as np
from transformers import PreTrainedTokenizerFast

from nemo_cdt.config import Questions
from nemo_cdt.config.compose import compose_settings
from nemo_cdt.data.documents import IGNORE, Document, Documents, TokenType
from nemo_cdt.data.jsonl import JsonlDocuments
from nemo_cdt.data.multihop import MultihopDocuments
from nemo_cdt.data.order import Shuffled
from nemo_cdt.data.rows import PackedRows
from nemo_cdt.data.tokenizer import load_tokenizer, token_texts
from nemo_cdt.prepared import read_summary, require_there
from nemo_cdt.utils.enums import StrEnum
from nemo_cdt.utils.reading import encoded
from nemo_cdt.validation.rules import refuse

UNBOUNDED = 2**31
LABELLED = "labelled"
COLOURS = {
    "": (252, 245),
    LABELLED: (46, 34),
    "supporting": (81, 75),
    "interference": (220, 178),
    "low_frequency": (213, 170),
    "question": (51, 37),
}
"""Of 256, by what a token is; neighbours alternate between the two."""


class Split(StrEnum):
    train = "train"
    validation = "validation"


@dataclass(kw_only=True)
class Inspection(Questions):
    rows: list[int] = field(default_factory=lambda: [0])
    """The numbers of the rows to show, from 0."""
    split: Split = Split.train
    """Which part of a prepared folder, or of multihop, is shown."""
    tokenizer: Optional[str] = None
    """A Hugging Face folder, or byte; null takes the one that a folder was prepared with, else byte."""
    seq_length: Optional[int] = None
    """The length of a row; null takes the longest document's, and 1024 with multihop."""
    pack: bool = False
    """Whether rows are filled with whole documents, as in training with data.pack=true."""
    tokens: Optional[int] = 100
    """The number of tokens that are shown of either end of a document; null shows all."""
    seed: int = 42
    """The seed of what multihop generates."""


def inspect(data: str, overrides: Sequence[str], *, coloured: bool) -> Iterator[str]:
    """Lines for a terminal. ``data``: a folder of `nemo-cdt prepare`, a file of JSON lines, or ``multihop``.

    Raises:
        ValueError: for data that cannot be read, and for a row that is not there.
    """
    require_there(data)
    asked = _read(overrides)
    documents, tokenizer = _load(data, asked)
    if asked.tokenizer is None and not Path(data).is_dir():
        yield _bold("no tokenizer is named, so that tokens are bytes: set tokenizer=DIR for those of a model", coloured)
    for number in asked.rows:
        yield from _row(number, _members(documents, number, data, asked), tokenizer, asked, coloured)


def _read(overrides: Sequence[str]) -> Inspection:
    listed = [f"rows=[{o.removeprefix('rows=').strip('[]')}]" if o.startswith("rows=") else o for o in overrides]
    unknown = [override for override in listed if "=" not in override]
    if unknown:
        raise ValueError(f"{unknown[0]} is no KEY=VALUE")
    settings = compose_settings(Inspection, listed)
    refuse([*settings.mistakes(asked=True, prefix="")])
    return settings


def _load(data: str, asked: Inspection) -> tuple[Documents, PreTrainedTokenizerFast]:
    if data == "multihop":
        tokenizer = load_tokenizer(asked.tokenizer or "byte")
        size = UNBOUNDED if asked.pack else max(asked.rows) + 1
        length = asked.seq_length or 1024
        drawn = MultihopDocuments(
            tokenizer, seq_length=length, seed=asked.seed, size=size, split=asked.split, **asked.questions()
        )
        return drawn, tokenizer
    path = Path(data)
    if path.is_dir():
        summary = read_summary(path)
        if not summary[asked.split]["documents"]:
            raise ValueError(f"{path} has no documents in split={asked.split}")
        from nemo_cdt.megatron.indexed import IndexedDocuments  # imports Megatron, which takes long

        return IndexedDocuments(path / asked.split), load_tokenizer(asked.tokenizer or summary["tokenizer"]["path"])
    tokenizer = load_tokenizer(asked.tokenizer or "byte")
    length = asked.seq_length or UNBOUNDED
    return JsonlDocuments(path, tokenizer, seq_length=length, truncate=False, vocab_size=UNBOUNDED), tokenizer


def _members(documents: Documents, number: int, data: str, asked: Inspection) -> list[Document]:
    if not asked.pack:
        if not 0 <= number < len(documents):
            raise ValueError(f"rows={number}: {data} has rows 0 to {len(documents) - 1}")
        return [documents[number]]
    if asked.seq_length is None:
        raise ValueError("pack=true needs seq_length: set it to the run's data.seq_length")
    endless = Shuffled(documents, seed=0, length=UNBOUNDED, shuffle=False)  # the last row goes on with the first again
    packed = PackedRows(endless, asked.seq_length, count=number + 1)
    return [endless[member] for member in range(packed.first[number], packed.first[number + 1])]


def _row(
    number: int, members: list[Document], tokenizer: PreTrainedTokenizerFast, asked: Inspection, coloured: bool
) -> Iterator[str]:
    fed = sum(len(document.input_ids) - 1 for document in members)
    length = asked.seq_length or fed
    labelled = sum(_labelled(document).sum() for document in members)
    several = f"{len(members)} documents" if len(members) > 1 else "1 document"
    yield _bold(
        f"row {number}: {several}, {fed:,} of {length:,} positions fed, {labelled:,} of them labelled", coloured
    )
    for place, document in enumerate(members):
        count, here = len(document.input_ids), _labelled(document).sum()
        yield _bold(f"---- document {place}: {count:,} tokens, {here:,} labelled ----", coloured)
        yield _document(document, tokenizer, asked.tokens, coloured)


def _labelled(document: Document) -> np.ndarray:
    """[n]: which tokens are predicted. The first never is."""
    return np.append(False, document.labels[1:] != IGNORE)


def _document(document: Document, tokenizer: PreTrainedTokenizerFast, ends: int | None, coloured: bool) -> str:
    count = len(document.input_ids)
    kinds = _kinds(document)
    if ends is None or count <= 2 * ends:
        return _written(document.input_ids, kinds, tokenizer, coloured)
    first = _written(document.input_ids[:ends], kinds[:ends], tokenizer, coloured)
    last = _written(document.input_ids[count - ends :], kinds[count - ends :], tokenizer, coloured)
    return f"{first}\n{_bold(f'... {count - 2 * ends:,} tokens ...', coloured)}\n{last}"


def _kinds(document: Document) -> list[str]:
    types = document.types if document.types is not None else np.zeros(len(document.input_ids), dtype=np.uint8)
    names = [TokenType(kind).name for kind in types.tolist()]
    return [
        LABELLED if label else name if name in COLOURS else ""
        for label, name in zip(_labelled(document), names, strict=True)
    ]


def _written(ids: np.ndarray, kinds: list[str], tokenizer: PreTrainedTokenizerFast, coloured: bool) -> str:
    texts = token_texts(tokenizer, ids.tolist())
    if coloured:
        return "".join(
            f"\033[38;5;{COLOURS[kind][place % 2]}m{_printable(text)}\033[0m"
            for place, (text, kind) in enumerate(zip(texts, kinds, strict=True))
        )
    pieces = []
    for kind, group in groupby(zip(texts, kinds, strict=True), key=lambda pair: pair[1]):
        text = _printable("".join(text for text, _ in group))
        pieces.append(f"[[{kind}: {text}]]" if kind else text)
    return "".join(pieces)


def _printable(text: str) -> str:
    """Without what would steer a terminal."""
    whole = encoded(text).decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in whole)


def _bold(text: str, coloured: bool) -> str:
    return f"\033[1m{text}\033[0m" if coloured else text
