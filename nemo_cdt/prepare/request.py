"""What ``nemo-cdt prepare`` was asked: the name of a file in ``conf/prepare``, and overrides of its values."""

import re
from collections.abc import Sequence
from pathlib import Path
from string import Formatter
from typing import Any, cast

from nemo_cdt.config.compose import compose_settings
from nemo_cdt.prepare.settings import SCHEMAS, Kind, Settings, Source, prefix, sources


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
    _check_template(f"{key}passage", source.passage, {"number", "text"}, {"text"})
    needed = {"question", "passages"} if source.fields.passages else {"question"}
    _check_template(f"{key}prompt", source.prompt, needed, needed)


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
