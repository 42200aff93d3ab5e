"""From a row of a data set to documents of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from nemo_cdt.data.documents import IGNORE
from nemo_cdt.data.jsonl import Tokens, chat_tokens, check_text_or_chat, is_text, parse, row_tokens
from nemo_cdt.data.templates import BrokenTemplateError
from nemo_cdt.data.tokenizer import encode
from nemo_cdt.prepare.passages import picked
from nemo_cdt.prepare.rejected import RejectedError
from nemo_cdt.prepare.settings import Kind, Source, Wording


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What is counted of a row. "" and 0 are what the data set does not tell."""

    type: str = ""
    language: str = ""
    supporting: int = 0


NONE_TOLD = Traits()


def traits(content: Any, source: Source) -> Traits:
    """Of a question.

    Raises:
        RejectedError: where it is of a language that is not asked for, or a field is missing or no text.
    """
    row, fields = parsed(content), source.fields
    kind, language = (_text(row.get(name), name) if name else "" for name in (fields.type, fields.language))
    if source.languages is not None and language not in source.languages:
        raise RejectedError("other language", f"'{language}' is none of languages={source.languages}")
    return Traits(type=kind, language=language, supporting=_supporting(row, source) or 0)


def supporting(content: Any, source: Source) -> int:
    """How many supporting passages a row has.

    Raises:
        RejectedError: where it does not say, or has a number that is not asked for; what :func:`traits` raises.
    """
    row = parsed(content)
    traits(row, source)
    found = _supporting(row, source)
    if found is None:
        raise RejectedError("bad row", f"'{source.fields.evidence}' must be a list of passages, or how many there are")
    if found not in source.evidence:
        raise RejectedError("other evidence", f"{found} supporting passages are none of evidence={source.evidence}")
    return found


def _supporting(row: dict[str, Any], source: Source) -> int | None:
    """Where they are listed, those that the document has, each once. Without lengths that is of the row's passages."""
    found, passages = (row.get(name or "") for name in (source.fields.evidence, source.fields.passages))
    if isinstance(found, list):
        inner = source.fields.passage
        there = passages if isinstance(passages, list) and not source.lengths else found
        texts, known = ([p.get(inner) if inner and isinstance(p, dict) else p for p in one] for one in (found, there))
        return sum(text in known and text not in texts[:number] for number, text in enumerate(texts))
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def documents(
    content: Any, source: Source, tokenizer: PreTrainedTokenizerFast, seed: Sequence[int] = (0,)
) -> list[Tokens]:
    """A row's documents: several where it is a book.

    seed: of what is drawn for this row, where its passages are picked.

    Raises:
        RejectedError: where it gives none.
        BrokenTemplateError: where no row will.
    """
    try:
        if source.kind is Kind.books:
            return _chunks(_book(content, source), source, tokenizer)
        return [_of_right_length(_tokens(parsed(content), source, tokenizer, seed), source)]
    except (RejectedError, BrokenTemplateError):
        raise
    except ValueError as error:
        raise RejectedError("bad row", str(error)) from error


def _tokens(row: dict[str, Any], source: Source, tokenizer: PreTrainedTokenizerFast, seed: Sequence[int]) -> Tokens:
    if source.kind is Kind.questions:
        return _question_tokens(row, source, tokenizer, seed)
    _check_row(row, tokenizer)
    return row_tokens(tokenizer, row)


def check_fields(content: Any, source: Source, prefix: str = "") -> None:
    """Raise ValueError where a row, the first one, lacks a field that the settings name: the others will, too.

    prefix: of the source's keys on the command line.
    """
    asked = ["question", "answer", "passages", "evidence", "type", "language"]
    keys = {Kind.books: ["text"], Kind.questions: asked, Kind.rows: []}
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
            none = ", or to null where there is none" * (key in ("passages", "evidence", "type", "language"))
            raise ValueError(f"{field}={name} is no field of the rows, which have {has}: set {field} to one{none}")


def parsed(content: bytes | dict[str, Any]) -> dict[str, Any]:
    """A row of JSON, or of parquet, which is one already.

    Raises:
        RejectedError: where it is no JSON object.
    """
    if isinstance(content, dict):
        return content
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


def _question_tokens(
    row: dict[str, Any], source: Source, tokenizer: PreTrainedTokenizerFast, seed: Sequence[int]
) -> Tokens:
    found, fields = traits(row, source), source.fields
    wording = source.translations.get(found.language, source)
    question, answer = (_text(row.get(name or ""), name) for name in (fields.question, fields.answer))
    passages = [] if fields.passages is None else _passages(row, fields.passages, source)

    def tokens(passages: list[str]) -> Tokens:
        prompt = _prompt(wording, found.type in source.reasoning_types).format(
            question=question, passages=_written(passages, wording)
        )
        return chat_tokens(tokenizer, [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])

    if not source.lengths:
        return tokens(passages)
    rng = np.random.default_rng(seed)
    return picked(
        passages,
        list(dict.fromkeys(_passages(row, fields.evidence or "", source))),
        target=int(rng.choice(source.lengths)),
        count=lambda passage: len(
            encode(tokenizer, _written([passage], wording), add_special_tokens=False)["input_ids"]
        ),
        tokens=tokens,
        rng=rng,
    )


def _prompt(wording: Wording, reasoning: bool) -> str:
    return wording.reasoning_prompt if reasoning and wording.reasoning_prompt else wording.prompt


def _written(passages: list[str], wording: Wording) -> str:
    return "".join(wording.passage.format(number=number, text=text) for number, text in enumerate(passages, start=1))


def _passages(row: dict[str, Any], field: str, source: Source) -> list[str]:
    passages, inner = row.get(field), source.fields.passage
    if not isinstance(passages, list) or not passages:
        raise RejectedError("bad row", f"'{field}' must be a list of passages")
    texts = passages if inner is None else [p.get(inner) if isinstance(p, dict) else None for p in passages]
    return [_text(text, f"{field}[{number}]{'.' * bool(inner)}{inner or ''}") for number, text in enumerate(texts)]


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
