"""Documents of a JSON-lines file, read lazily: what is held in memory is where each row begins."""

import json
import multiprocessing
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from nemo_cdt.data.documents import IGNORE, Document
from nemo_cdt.data.templates import marks, rendered, template_of
from nemo_cdt.data.tokenizer import encode
from nemo_cdt.utils.reading import opened, read_lines

Tokens = tuple[np.ndarray, np.ndarray]
"""Token ids and labels, int64 [n] each."""

_NO_PROMPT = (
    "every token is labelled, but objective=sft trains on answers alone: give the row 'messages', or 'labels' that are "
    "-100 in the prompt, or set objective=ce"
)


class JsonlDocuments:
    """``Documents`` of the rows of ``path``; blank lines are no rows. A row has one of

    ``input_ids`` and ``labels`` (``IGNORE`` where not trained on); ``messages``, a chat of which the assistant's turns
    are labelled; ``text``, labelled throughout.

    A document has at most ``seq_length + 1`` tokens: more is an error, or is cut off with ``truncate``. With
    ``prompted`` it must have a token that is not trained on.
    Construction reads the file once and raises ValueError with ``file:line`` for a row that cannot be used; how long
    texts and chats are is known only when they are read.
    """

    def __init__(
        self,
        path: str | Path,
        tokenizer: PreTrainedTokenizerFast,
        *,
        seq_length: int,
        truncate: bool,
        vocab_size: int,
        prompted: bool = False,
    ):
        self._path = Path(path)
        self._tokenizer = tokenizer
        self._limit = seq_length + 1
        self._truncate = truncate
        self._vocab_size = vocab_size
        self._prompted = prompted
        # Shared, so that what DataLoader's workers cut off counts too; a lock of "spawn" serves forked ones as well.
        self._truncated = multiprocessing.get_context("spawn").Array("q", 2)
        self._offsets, self._lines, self._lengths = self._index()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Document:
        document, cut = self._load(index)
        self._count_truncated(cut)
        return document

    def length(self, index: int) -> int:
        """Known of token ids since construction, of texts and chats once asked for."""
        if not self._lengths[index]:
            self._lengths[index] = len(self._load(index)[0].input_ids)
        return int(self._lengths[index])

    def _load(self, index: int) -> tuple[Document, int]:
        """The document, and how many tokens were cut off."""
        with self._blamed_on(self._lines[index]):
            tokens = row_tokens(self._tokenizer, self._row(index))
            document = self._document(tokens)
        return document, len(tokens[0]) - len(document.input_ids)

    def _row(self, index: int) -> dict[str, Any]:
        return parse(self._read(self._offsets[index]))

    @property
    def truncated(self) -> tuple[int, int]:
        return self._truncated[0], self._truncated[1]

    def _index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where each row begins, in bytes, its line number, its length or 0; every row is checked on the way."""
        offsets, lines, lengths, offset = array("q"), array("q"), array("q"), 0
        for number, line in read_lines(self._path):
            if not line.isspace():
                with self._blamed_on(number):
                    lengths.append(self._check(parse(line)))
                offsets.append(offset)
                lines.append(number)
            offset += len(line)
        if not offsets:
            raise ValueError(f"{self._path}: no rows; a row is a JSON object with 'text', 'messages' or 'input_ids'")
        table = np.array([offsets, lines, lengths])
        return table[0], table[1], table[2]

    def _read(self, offset: int) -> bytes:
        with opened(self._path) as file:
            file.seek(offset)
            return file.readline()

    @contextmanager
    def _blamed_on(self, line: int) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self._path}:{line}: {error}") from error

    def _check(self, row: dict[str, Any]) -> int:
        """Everything that can be said of a row without tokenizing it; its length, 0 where that takes a tokenizer."""
        if "input_ids" in row:
            return len(self._document(_given(row)).input_ids)
        check_text_or_chat(self._tokenizer, row)
        if self._prompted and "messages" not in row:
            raise ValueError(_NO_PROMPT)
        return 0

    def _document(self, tokens: Tokens) -> Document:
        length = len(tokens[0])
        if length > self._limit and not self._truncate:
            raise ValueError(
                f"{length} tokens are more than data.seq_length + 1 = {self._limit}; "
                "raise data.seq_length or set data.truncate=true"
            )
        ids, labels = (values[: self._limit] for values in tokens)
        if length < 2 or (labels[1:] == IGNORE).all():
            raise ValueError(f"no labelled token among tokens 2 to {len(ids)}")
        if self._prompted and not (labels == IGNORE).any():
            raise ValueError(_NO_PROMPT)
        self._check_vocabulary("input_ids", ids)
        self._check_vocabulary("labels", labels[labels != IGNORE])
        return Document(input_ids=ids, labels=labels)

    def _check_vocabulary(self, field: str, ids: np.ndarray) -> None:
        outside = ids[(ids < 0) | (ids >= self._vocab_size)]
        if len(outside):
            raise ValueError(f"{field}: {outside[0]} is outside the vocabulary of {self._vocab_size}")

    def _count_truncated(self, tokens: int) -> None:
        if tokens:
            with self._truncated:
                self._truncated[0] += 1
                self._truncated[1] += tokens


def check_text_or_chat(tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]) -> None:
    """Raise ValueError for a row whose ``messages`` or ``text`` cannot be used, as far as no tokenizing tells."""
    if "messages" in row:
        check_messages(tokenizer, row["messages"])
    elif "text" not in row:
        raise ValueError(f"has {str(sorted(row))[:300]}; a row needs 'text', 'messages', or 'input_ids' and 'labels'")
    elif not row["text"] or not is_text(row["text"]):
        raise ValueError("'text' must be a string of valid Unicode that is not empty")


def check_messages(tokenizer: PreTrainedTokenizerFast, messages: Any) -> None:
    """Raise ValueError for a chat that cannot be used."""
    template_of(tokenizer)
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise ValueError("'messages' must be a list of objects with the valid strings 'role' and 'content'")
    for message in messages:
        _check_weight(message)
    own = [message for message in messages if message["role"] == "assistant"]
    if not own:
        raise ValueError("no labelled token: no message is the assistant's")
    if not any(map(_is_trained, own)):
        raise ValueError("no labelled token: every message of the assistant's has weight 0, or train false")


def _check_weight(message: dict[str, Any]) -> None:
    weight, train, own = message.get("weight"), message.get("train"), message["role"] == "assistant"
    if weight not in (None, 0, 1) or train not in (None, True, False):
        raise ValueError(
            f"a message has weight={weight!r}, train={train!r}: a weight is 0 or 1, train is true or false"
        )
    if not own and (weight or train):
        raise ValueError(f"a message of {message['role'][:60]!r} is to be trained on: only the assistant's are")


def row_tokens(tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]) -> Tokens:
    """Of a row that was checked."""
    if "input_ids" in row:
        return _given(row)
    if "messages" in row:
        return chat_tokens(tokenizer, row["messages"])
    ids = np.array(encode(tokenizer, row["text"])["input_ids"], dtype=np.int64)
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids = ids[1:]  # the text begins with it already
    return ids, ids


def chat_tokens(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> Tokens:
    """A chat by the tokenizer's template, the assistant's turns labelled, the end of turn included.

    The template marks them with ``{% generation %}``; one that does not must render the first messages of a chat as it
    renders them alone.

    Raises:
        ValueError: where it does not, or refuses the chat.
    """
    text, turns = rendered(tokenizer, messages)
    encoding = encode(tokenizer, text, add_special_tokens=False, return_offsets_mapping=True)
    ids = np.array(encoding["input_ids"], dtype=np.int64)
    starts, stops = np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
    lasts = stops - 1
    # A template that marks has tokens of which any character is the assistant's, as transformers has it; a space is in
    # no token's offsets. The other way it is the last character.
    starts = np.minimum(starts, lasts) if marks(template_of(tokenizer)) else lasts
    assistant = np.zeros(len(ids), dtype=bool)
    for start, stop in _trained(messages, turns):
        assistant |= (start <= lasts) & (starts < stop)
    return ids, np.where(assistant, ids, IGNORE)


def _trained(messages: list[dict[str, Any]], turns: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The turns that are not to be left out, by ``"weight": 0`` or ``"train": false`` of their messages."""
    own = [message for message in messages if message["role"] == "assistant"]
    if all(_is_trained(message) for message in own):
        return turns
    if len(own) != len(turns):
        raise ValueError(
            f"{len(own)} messages are the assistant's, but the template marks {len(turns)} parts: which of them has "
            "weight 0 cannot be told"
        )
    return [turn for turn, message in zip(turns, own, strict=True) if _is_trained(message)]


def _is_trained(message: dict[str, Any]) -> bool:
    return bool(message.get("weight", 1)) and bool(message.get("train", True))


def parse(line: bytes | str) -> dict[str, Any]:
    """A row.

    Raises:
        ValueError: where the line is no JSON object.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return row


def _given(row: dict[str, Any]) -> Tokens:
    ids, labels = integers(row, "input_ids"), integers(row, "labels")
    if len(ids) != len(labels):
        raise ValueError(f"{len(ids)} 'input_ids' but {len(labels)} 'labels'")
    require_own_labels(ids, labels)
    return ids, labels


def require_own_labels(ids: np.ndarray, labels: np.ndarray) -> None:
    """Raise ValueError for a label that is neither ``IGNORE`` nor its own token, as labels that are shifted already."""
    wrong = np.flatnonzero((labels != IGNORE) & (labels != ids))
    if len(wrong):
        first = wrong[0]
        raise ValueError(
            f"label {first} is {labels[first]}, but token {first} is {ids[first]}: a label is {IGNORE} or its own "
            "token. Training sees to it that a token is predicted by those before it, so do not shift labels"
        )


def integers(row: dict[str, Any], field: str) -> np.ndarray:
    values = row.get(field)
    if not isinstance(values, list) or not set(map(type, values)) <= {int}:
        raise ValueError(f"'{field}' must be a list of integers")
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError as error:
        raise ValueError(f"'{field}' holds {str(max(values, key=abs))[:60]}, which is no token") from error


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(is_text(message.get(key)) for key in ("role", "content"))


def is_text(value: Any) -> bool:
    """A string that can be encoded."""
    # JSON can write half a surrogate pair, which no tokenizer takes.
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value
