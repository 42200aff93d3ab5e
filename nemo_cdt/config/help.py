"""The keys of a schema as ``--help`` and the documentation show them: each with its default and what it means.

What a key means is the string below it in the source, or the comment behind it.
"""

import ast
import inspect
import re
from argparse import Action, ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import pairwise
from textwrap import dedent, fill
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
            source = dedent(inspect.getsource(base))
            found |= dict(re.findall(r"^    (\w+): .*?  # (.*)$", source, re.MULTILINE))
            found |= _strings_below(source)
    return found


def _strings_below(source: str) -> dict[str, str]:
    """The string that stands below a field, on one line, by the field's name."""
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    return {
        first.target.id: " ".join(second.value.value.split())
        for first, second in pairwise(definition.body)
        if isinstance(first, ast.AnnAssign)
        and isinstance(first.target, ast.Name)
        and isinstance(second, ast.Expr)
        and isinstance(second.value, ast.Constant)
        and isinstance(second.value.value, str)
    }


def spelled(value: Any) -> str:
    """As one writes it on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(spelled, value))}]"
    if isinstance(value, str) and not isinstance(value, Enum):
        return repr(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
