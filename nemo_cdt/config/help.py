"""The keys of a schema as ``--help`` shows them: each with its default, and what its comment in the source says."""

import inspect
import re
from argparse import Action, ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from textwrap import fill
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
    source = "".join(inspect.getsource(base) for base in reversed(type(schema).__mro__) if is_dataclass(base))
    comments = dict(re.findall(r"^    (\w+): .*?  # (.*)$", source, re.MULTILINE))
    for item in fields(schema):
        key, value = f"{prefix}{item.name}", getattr(schema, item.name)
        if is_dataclass(value):
            yield from described(value, f"{key}.")
            continue
        said = [comments.get(item.name, "")]
        if isinstance(value, Enum):
            said.append(f"({', '.join(type(value))})")
        yield fill(f"{f'{key}={_spelled(value)}':<35} {' '.join(said).strip()}", WIDTH, initial_indent="  ",
                   subsequent_indent=" " * 38, break_on_hyphens=False)  # fmt: skip


def _spelled(value: Any) -> str:
    """As one writes it on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_spelled, value))}]"
    if isinstance(value, str) and not isinstance(value, Enum):
        return repr(value)
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
