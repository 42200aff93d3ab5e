"""The keys of a schema as ``--help`` and the documentation show them: each with its default and what it means.

What a key means is the string below it in the source, or the comment behind it.
"""

import ast
import inspect
import io
from argparse import Action, ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import pairwise
from textwrap import dedent, fill
from tokenize import COMMENT, generate_tokens
from typing import Any

WIDTH = 118


class KeysHelp(Action):
    """``--help`` that ends with keys. ``const``: () -> the schema's instance, whose import is made only then."""

    const: Callable[[], Any]

    def __call__(self, parser: ArgumentParser, *_: Any) -> None:
        print(parser.format_help(), "keys, with their defaults:", *described(self.const()), sep="\n")
        parser.exit()


def described(schema: Any, prefix: str = "") -> Iterator[str]:
    """A line, or a few, for each key of a dataclass's instance."""
    meanings = descriptions(type(schema))
    for item in fields(schema):
        key, value = f"{prefix}{item.name}", getattr(schema, item.name)
        if is_dataclass(value):
            yield from described(value, f"{key}.")
            continue
        said = [meanings.get(item.name, "")]
        if isinstance(value, Enum):
            said.append(f"({', '.join(type(value))})")
        yield fill(f"{f'{key}={spelled(value)}':<35} {' '.join(said).strip()}", WIDTH, initial_indent="  ",
                   subsequent_indent=" " * 38, break_on_hyphens=False)  # fmt: skip


def descriptions(schema: type) -> dict[str, str]:
    """What the source of a dataclass, and of those it derives from, says of each key that it explains."""
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if is_dataclass(base):
            found |= _explained(dedent(inspect.getsource(base)))
    return found


def _explained(source: str) -> dict[str, str]:
    """Of a class: the string below each field, on one line, else the comment behind it."""
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in generate_tokens(io.StringIO(source).readline)
        if token.type == COMMENT
    }
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, below in pairwise([*definition.body, ast.Pass()]):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            lines = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
            said = _string(below) or " ".join(comments[line] for line in lines if line in comments)
            found |= {statement.target.id: said} if said else {}
    return found


def _string(statement: ast.stmt) -> str:
    """The string that a statement is, on one line; empty where it is something else."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        value = statement.value.value
        return " ".join(value.split()) if isinstance(value, str) else ""
    return ""


def spelled(value: Any) -> str:
    """As one writes it on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(spelled, value))}]"
    if isinstance(value, str) and not isinstance(value, Enum):
        return repr(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
