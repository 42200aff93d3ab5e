"""What ``nemo-cdt prepare`` was asked: the name of a file in ``conf/prepare``, and overrides of its values."""

import re
from collections.abc import Sequence
from pathlib import Path
from string import Formatter
from typing import Any, cast

from nemo_cdt.config.compose import compose_settings
from nemo_cdt.prepare.settings import SCHEMAS, Kind, Settings, Source, Wording, prefix, sources


def read(name: str, overrides: Sequence[str]) -> Settings:
    """Composes ``conf/prepare/NAME.yaml``, and checks what no type can say.

    Raises:
        ValueError: for what cannot be composed or cannot be, in one line.
    """
    if name not in SCHEMAS:
        raise ValueError(f"prepare {name}: choose one of {', '.join(SCHEMAS)}")
    settings = compose_prepare(name, list(overrides))
    _check(name, settings)
    return settings


def compose_prepare(name: str, overrides: list[str]) -> Settings:
    schema: Any = SCHEMAS[name]
    return cast(Settings, compose_settings(schema, overrides, option=f"prepare/{name}"))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check(name: str, settings: Settings) -> None:
    for key in ("output", "tokenizer"):
        _require(bool(getattr(settings, key)), f"{key}=null: set {key}=DIR")
    _require(settings.workers > 0, f"workers={settings.workers}: set it to a number above 0")
    _require(settings.seed >= 0, f"seed={settings.seed}: set it to 0 or more")
    tokenizer = settings.tokenizer or ""
    _require(
        tokenizer == "byte" or Path(tokenizer).is_dir(),
        f"tokenizer={tokenizer} is no folder: set it to a tokenizer's folder, or to byte",
    )
    for part, source in sources(name, settings).items():
        _check_source(prefix(part, settings), source)


def _check_source(key: str, source: Source) -> None:
    _require(source.input is not None, f"{key}input=null: set {key}input to the data set's local copy")
    _require(Path(source.input or "").exists(), f"{key}input={source.input} does not exist")
    _require(source.samples is None or source.samples > 0, f"{key}samples={source.samples}: set it above 0, or to null")
    held_out = source.validation_samples
    _require(held_out >= 0, f"{key}validation_samples={held_out}: set it to 0 or more")
    least, most = source.min_tokens, source.max_tokens
    _require(least >= 2, f"{key}min_tokens={least}: set it to 2 or more")
    _require(most is None or most >= least, f"{key}max_tokens={most} is below {key}min_tokens={least}")
    if source.kind is Kind.books:
        length = source.seq_length
        _require(length is not None and length >= 2, f"{key}seq_length={length}: set it to 2 or more")
    if source.kind is Kind.questions:
        _check_questions(key, source)
    evidence = source.evidence
    _require(
        len({*evidence}) == len(evidence) and min(evidence, default=1) > 0,
        f"{key}evidence={evidence}: set it to numbers above 0, each once, or to []",
    )
    _require(
        not evidence or source.fields.evidence is not None,
        f"{key}evidence={evidence} needs {key}fields.evidence, the name of the field that tells it",
    )


def _check_questions(key: str, source: Source) -> None:
    for field in ("question", "answer"):
        _require(bool(getattr(source.fields, field)), f"{key}fields.{field}=null: set it to a field of the rows")
    _check_wording(key, source, source)
    for language, wording in source.translations.items():
        _check_wording(f"{key}translations.{language}.", wording, source)
    for name, field, off in (("languages", "language", "null"), ("reasoning_types", "type", "[]")):
        value = getattr(source, name)
        _require(
            not value or getattr(source.fields, field) is not None,
            f"{key}{name}={value} needs {key}fields.{field}, the name of the field that tells it: set one, or "
            f"{key}{name}={off}",
        )
    _require(source.languages != [], f"{key}languages=[] takes no row: set languages, or null for all")
    _check_lengths(key, source)


def _check_wording(key: str, wording: Wording, source: Source) -> None:
    needed = {"question", "passages"} if source.fields.passages else {"question"}
    _check_template(f"{key}passage", wording.passage, {"number", "text"}, {"text"})
    _check_template(f"{key}prompt", wording.prompt, needed, needed)
    if wording.reasoning_prompt is not None:
        _check_template(f"{key}reasoning_prompt", wording.reasoning_prompt, needed, needed)
    _require(
        not source.reasoning_types or wording.reasoning_prompt is not None,
        f"{key}reasoning_prompt=null: set what asks for a reasoning, for reasoning_types={source.reasoning_types}",
    )


def _check_lengths(key: str, source: Source) -> None:
    least, most = source.min_tokens, source.max_tokens
    for length in source.lengths:
        _require(
            length > least and (most is None or length <= most),
            f"{key}lengths={source.lengths}: {length} is not above {key}min_tokens={least} and at most "
            f"{key}max_tokens={most}",
        )
    told = source.fields.passages is not None and source.fields.evidence is not None
    _require(
        told or not source.lengths,
        f"{key}lengths={source.lengths} needs {key}fields.passages and {key}fields.evidence, the lists to pick from",
    )


def _check_template(key: str, template: str, known: set[str], needed: set[str]) -> None:
    try:
        named = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ValueError(f"{key}={template!r}: {error}") from error
    _require(
        needed <= named <= known and not re.search(r"\{\w+[!:.\[]", template),
        f"{key}={template!r}: it must write {' and '.join(sorted(needed))} in braces, and nothing else but "
        f"{', '.join(sorted(known))}",
    )
