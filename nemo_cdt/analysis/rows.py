"""Rows of a file that is analysed: texts, chats or tokens, with the parts whose type is known."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from nemo_cdt.data.documents import IGNORE, Document, TokenType
from nemo_cdt.data.jsonl import check_messages, integers, is_text, require_own_labels
from nemo_cdt.data.templates import placed
from nemo_cdt.data.tokenizer import encode


@dataclass(kw_only=True, slots=True)
class Span:
    """Characters ``start`` to ``end`` of a text, or of the message of this number."""

    start: int
    end: int
    type: TokenType
    message: int = 0


def check(row: dict[str, Any]) -> None:
    """Raise ValueError for a row that cannot be analysed, as far as no tokenizer tells."""
    if "input_ids" in row:
        _of_tokens(row)
    elif "messages" in row:
        _chat(row)
    elif "text" in row and "answer" in row:
        _text(row)
    else:
        raise ValueError(
            f"has {sorted(row)}; a sample has 'text', 'answer' and 'spans', or 'messages' and 'spans', or 'input_ids', "
            "'labels' and 'token_types'"
        )


def document(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast | None) -> Document:
    """Of a row that :func:`check` has passed.

    Raises:
        ValueError: where the tokenizer is missing, or its chat template does not write the messages as they stand.
    """
    if "input_ids" in row:
        return _of_tokens(row)
    if tokenizer is None:
        kind = "messages" if "messages" in row else "text"
        raise ValueError(f"'{kind}' needs a tokenizer, and the model's folder has none: set tokenizer=DIR")
    return _of_chat(row, tokenizer) if "messages" in row else _of_text(row, tokenizer)


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


def _text(row: dict[str, Any]) -> tuple[list[Span], int]:
    """The spans, and where the answer begins: where its text occurs last."""
    text, answer = row["text"], row["answer"]
    if not (is_text(text) and is_text(answer) and answer):
        raise ValueError("'text' and 'answer' must be strings of valid Unicode, and the answer not empty")
    start = text.rfind(answer)
    if start < 0:
        raise ValueError(f"the answer {answer!r} does not occur in the text: a sample's text ends with its answer")
    return _spans(row.get("spans"), [text], "text"), start


def _of_text(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> Document:
    spans, start = _text(row)
    return _typed(tokenizer, row["text"], spans, start, start + len(row["answer"]), special=True)


def _chat(row: dict[str, Any]) -> tuple[list[Span], int, int, int]:
    """The spans; the number of the message that has the answer, and where in its content that begins and ends."""
    messages, answer = row["messages"], row.get("answer")
    if not isinstance(messages, list) or not all(
        isinstance(one, dict) and is_text(one.get("role")) and is_text(one.get("content")) for one in messages
    ):
        raise ValueError("'messages' must be a list of objects with the valid strings 'role' and 'content'")
    own = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not own:
        raise ValueError("no message is the assistant's: its last one is the answer that is analysed")
    content = messages[own[-1]]["content"]
    stripped = content.strip() if answer is None else answer
    if not (is_text(stripped) and stripped):
        raise ValueError("the answer, which is the assistant's last message or 'answer', must be text and not empty")
    start = content.rfind(stripped)
    if start < 0:
        raise ValueError(f"the answer {answer!r} does not occur in the assistant's last message")
    spans = _spans(row.get("spans"), [message["content"] for message in messages], "message")
    return spans, own[-1], start, start + len(stripped)


def _of_chat(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> Document:
    spans, answering, start, end = _chat(row)
    messages = row["messages"]
    check_messages(tokenizer, messages)
    text, _, at = placed(tokenizer, messages)
    if len(at) < len(messages):
        raise ValueError(
            f"the tokenizer's chat template does not write message {len(at)} as it stands, so its 'spans' cannot "
            "be placed: give the row 'text', as the template writes it"
        )
    for span in spans:
        span.start, span.end = span.start + at[span.message], span.end + at[span.message]
    return _typed(tokenizer, text, spans, start + at[answering], end + at[answering], special=False)


def _typed(
    tokenizer: PreTrainedTokenizerFast, text: str, spans: list[Span], start: int, end: int, *, special: bool
) -> Document:
    """A token is of the span, or of the answer, that its last character lies in. ``special``: whether to add tokens."""
    encoding = encode(
        tokenizer, text, add_special_tokens=special, return_offsets_mapping=True, return_special_tokens_mask=True
    )
    last_N = np.array(encoding["offset_mapping"]).reshape(-1, 2)[:, 1] - 1
    ordinary_N = np.array(encoding["special_tokens_mask"]) == 0
    ids = np.array(encoding["input_ids"], dtype=np.int64)
    types = np.full(len(ids), TokenType.irrelevant, dtype=np.uint8)
    for span in spans:
        types[ordinary_N & (span.start <= last_N) & (last_N < span.end)] = span.type
    answered = ordinary_N & (start <= last_N) & (last_N < end)
    types[answered] = TokenType.answer
    return Document(input_ids=ids, labels=np.where(answered, ids, IGNORE), types=types)


def _spans(spans: Any, texts: list[str], what: str) -> list[Span]:
    """In order, checked. ``texts``: what they may be of, ``what`` each is called."""
    if not isinstance(spans, list):
        number = "'message' (its number, from 0), " if what == "message" else ""
        raise ValueError(
            f"'spans' must be a list of objects with {number}'start', 'end' and 'type', in characters of the {what}"
        )
    found = sorted((_span(span, texts, what) for span in spans), key=lambda span: (span.message, span.start))
    for one, other in pairwise(found):
        if one.message == other.message and other.start < one.end:
            raise ValueError(f"the spans {one.start} to {one.end} and {other.start} to {other.end} overlap")
    return found


def _span(span: Any, texts: list[str], what: str) -> Span:
    if not isinstance(span, dict) or not {type(span.get("start")), type(span.get("end"))} == {int}:
        raise ValueError(f"the span {span} has no integers 'start' and 'end'")
    message = span.get("message") if what == "message" else 0
    if type(message) is not int or not 0 <= message < len(texts):
        raise ValueError(f"the span {span} has no 'message', the number of one from 0 to {len(texts) - 1}")
    first, stop = span["start"], span["end"]
    if not 0 <= first < stop <= len(texts[message]):
        raise ValueError(f"the span {first} to {stop} is not within the {what} of {len(texts[message])} characters")
    return Span(start=first, end=stop, type=_type(span.get("type")), message=message)


def _type(name: Any) -> TokenType:
    if not isinstance(name, str) or name not in TokenType.__members__:
        raise ValueError(f"{name!r} is no token type, which are {', '.join(TokenType.__members__)}")
    return TokenType[name]
