"""From a row of a data set to documents of tokens."""

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from nemo_cdt.data.documents import IGNORE
from nemo_cdt.data.jsonl import Tokens, chat_tokens, check_text_or_chat, is_text, parse, row_tokens
from nemo_cdt.data.templates import BrokenTemplateError
from nemo_cdt.data.tokenizer import encode
from nemo_cdt.prepare.settings import Kind, Source


class RejectedError(ValueError):
    """A row that gives no document. ``kind`` is what is counted, the message is of this row."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def supporting(content: Any, source: Source) -> int:
    """How many supporting passages a row has.

    Raises:
        RejectedError: where it does not say, or has a number that is not asked for.
    """
    found = _parsed(content).get(source.fields.evidence or "")
    if isinstance(found, list):
        found = len(found)
    if not isinstance(found, int) or isinstance(found, bool):
        raise RejectedError("bad row", f"'{source.fields.evidence}' must be a list of passages, or how many there are")
    if found not in source.evidence:
        raise RejectedError("other evidence", f"{found} supporting passages are none of evidence={source.evidence}")
    return found


def documents(content: Any, source: Source, tokenizer: PreTrainedTokenizerFast) -> list[Tokens]:
    """A row's documents: several where it is a book.

    Raises:
        RejectedError: where it gives none.
        BrokenTemplateError: where no row will.
    """
    try:
        if source.kind is Kind.books:
            return _chunks(_book(content, source), source, tokenizer)
        return [_of_right_length(_tokens(_parsed(content), source, tokenizer), source)]
    except (RejectedError, BrokenTemplateError):
        raise
    except ValueError as error:
        raise RejectedError("bad row", str(error)) from error


def _tokens(row: dict[str, Any], source: Source, tokenizer: PreTrainedTokenizerFast) -> Tokens:
    if source.kind is Kind.questions:
        return chat_tokens(tokenizer, _chat(row, source))
    _check_row(row, tokenizer)
    return row_tokens(tokenizer, row)


def check_fields(content: Any, source: Source, prefix: str = "") -> None:
    """Raise ValueError where a row, the first one, lacks a field that the settings name: the others will, too.

    prefix: of the source's keys on the command line.
    """
    keys = {Kind.books: ["text"], Kind.questions: ["question", "answer", "passages", "evidence"], Kind.rows: []}
    if isinstance(content, bytes):
        if source.kind is Kind.books:
            return  # a file of text
        try:
            content = parse(content)
        except ValueError:
            return  # it will be rejected, and tells nothing about the others
    for key in keys[source.kind]:
        name = getattr(source.fields, key)
        if name is not None and name not in content:
            has = ", ".join(map(str, content))
            field = f"{prefix}fields.{key}"
            raise ValueError(f"{field}={name} is no field of the rows, which have {has}: set {field} to one")


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        return parse(content)
    except ValueError as error:
        raise RejectedError("bad row", str(error)) from error


def _chunks(text: str, source: Source, tokenizer: PreTrainedTokenizerFast) -> list[Tokens]:
    """Documents of ``seq_length`` tokens, each begun with the bos token where the tokenizer adds one; the rest is lost.

    All of them are labelled: their labels are their tokens.
    """
    length = source.seq_length
    assert length is not None
    begins = encode(tokenizer, "")["input_ids"][:1] == [tokenizer.bos_token_id]
    bos = np.array([tokenizer.bos_token_id] if begins else [], dtype=np.int64)
    ids = np.array(encode(tokenizer, text, add_special_tokens=False)["input_ids"], dtype=np.int64)
    step = length - len(bos)
    chunks = [np.concatenate([bos, ids[start : start + step]]) for start in range(0, len(ids) - step + 1, step)]
    if not chunks:
        raise RejectedError("too short", f"{len(ids) + len(bos)} tokens are fewer than seq_length={length}")
    return [(chunk, chunk) for chunk in chunks]


def _book(content: Any, source: Source) -> str:
    if isinstance(content, dict):
        text = content.get(source.fields.text)
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RejectedError("bad row", "not UTF-8 text") from error
    if not is_text(text):
        raise RejectedError("bad row", f"'{source.fields.text}' must be a string of valid Unicode")
    return str(text)


def _chat(row: dict[str, Any], source: Source) -> list[dict[str, str]]:
    question, answer = (_text(row.get(name or ""), name) for name in (source.fields.question, source.fields.answer))
    parts = {"question": question}
    if source.fields.passages is not None:
        parts["passages"] = _passages(row.get(source.fields.passages), source)
    return [{"role": "user", "content": source.prompt.format(**parts)}, {"role": "assistant", "content": answer}]


def _passages(passages: Any, source: Source) -> str:
    field, inner = source.fields.passages, source.fields.passage
    if not isinstance(passages, list) or not passages:
        raise RejectedError("bad row", f"'{field}' must be a list of passages")
    texts = passages if inner is None else [p.get(inner) if isinstance(p, dict) else None for p in passages]
    written = (
        source.passage.format(number=number, text=_text(text, f"{field}[{number - 1}]{'.' * bool(inner)}{inner or ''}"))
        for number, text in enumerate(texts, start=1)
    )
    return "".join(written)


def _text(value: Any, name: str | None) -> str:
    if not value or not is_text(value):
        raise RejectedError("bad row", f"'{name}' must be a string of valid Unicode that is not empty")
    return value


def _check_row(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    if "input_ids" in row:
        raise RejectedError("bad row", "has 'input_ids', which need no preparation: train on them with data=jsonl")
    check_text_or_chat(tokenizer, row)


def _of_right_length(tokens: Tokens, source: Source) -> Tokens:
    ids, labels = tokens
    if len(ids) < source.min_tokens:
        raise RejectedError("too short", f"{len(ids)} tokens are fewer than min_tokens={source.min_tokens}")
    if source.max_tokens is not None and len(ids) > source.max_tokens:
        raise RejectedError("too long", f"{len(ids)} tokens are more than max_tokens={source.max_tokens}")
    if (labels[1:] == IGNORE).all():
        raise RejectedError("no label", "no labelled token behind the first")
    return tokens
