"""The one way in which a file of somebody else's is read: what is wrong with it becomes one line that names it.

Whoever interprets what a file holds does so inside :func:`blamed_on`, so that a wrong type or a missing key three
calls further down names the file too. Nothing here unpickles or runs anything.
"""

import itertools
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

LARGEST = 1 << 28
"""Bytes of a file that is read whole: 256 MiB. The largest tokenizers have 30."""
YAML_NODES = 100_000
"""Values of a YAML file with its aliases written out: ten lines of them can stand for billions."""

KINDS: dict[type, str] = {dict: "object", list: "list"}

OF_CONTENTS = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)
"""What code raises that is given another value than it takes."""


class FileError(ValueError):
    """A line that names the file already."""


@contextmanager
def blamed_on(file: object, but: str = "", whatever: bool = False) -> Iterator[None]:
    """Within it, what a file's contents make of the code that reads them is a ValueError: ``FILE: but (reason)``.

    Args:
        file: the file, or the file and a line, as a user is to find it.
        but: what it is not, as "it is no whole safetensors file". Without it the reason stands alone.
        whatever: also what code in Rust raises: a bare Exception, or what is none of it, which its panics are.

    Raises:
        FileError: a ValueError whose text begins with ``file``.
    """
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(_line(file, but, error.strerror or _reason(error))) from error
    except OF_CONTENTS as error:
        raise FileError(_line(file, but, _reason(error))) from error
    except BaseException as error:
        if whatever and (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise FileError(_line(file, but, _reason(error))) from error
        raise


def _line(file: object, but: str, reason: str) -> str:
    return f"{file}: {but} ({reason})" if but else f"{file}: {reason}"


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if len(text) > 200:
        text = f"{text[:200]} ..."
    match error:
        case KeyError():
            return f"it has no {text}"
        case RecursionError():
            return "it is nested too deeply"
        case MemoryError():
            return "it asks for more memory than there is"
        case ValueError() if text:
            return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file, to read: a named pipe would make one wait for ever.

    Raises:
        FileError: for one that is missing or no file.
    """
    with blamed_on(path):
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise FileError(f"{path}: it is no file")
        yield file


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """All of a regular file of at most ``most`` bytes.

    Raises:
        FileError: for one that is missing, larger, or no file.
    """
    with opened(path) as file, blamed_on(path):
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"it has {size:,} bytes, more than the {most:,} that are read")
        return file.read(size)


def read_lines(path: Path, most: int = LARGEST) -> Iterator[tuple[int, bytes]]:
    """The lines of a file of any size, from 1, each with its end.

    Raises:
        FileError: where the file cannot be read, or a line has more than ``most`` bytes.
    """
    with opened(path) as file:
        for number in itertools.count(1):
            with blamed_on(f"{path}:{number}"):
                line = file.readline(most + 1)
                if len(line) > most:
                    raise ValueError(f"a line of more than {most:,} bytes")
            if not line:
                return
            yield number, line


def read_text(path: Path, most: int = LARGEST) -> str:
    """The same, as UTF-8."""
    data = read_bytes(path, most)
    with blamed_on(path, "it is no UTF-8 text"):
        return data.decode("utf-8")


def read_json(path: Path, kind: type = dict, most: int = LARGEST) -> Any:
    """What a JSON file holds, which must be an object, or with ``kind=list`` a list.

    Raises:
        FileError: where the file cannot be read or holds anything else.
    """
    return parse_json(read_text(path, most), path, kind)


def parse_json(text: str | bytes, file: object, kind: type = dict) -> Any:
    """The same of a text; ``file`` is what to blame."""
    with blamed_on(file, "it is no JSON"):
        found = json.loads(text)
    if not isinstance(found, kind):
        raise FileError(f"{file}: it must hold a JSON {KINDS[kind]}, not {_named(found)}")
    return found


def read_yaml(path: Path) -> Any:
    """What a YAML file holds: plain values, and no more of them than :data:`YAML_NODES`.

    Raises:
        FileError: where it cannot be read, with the line where YAML says which.
    """
    text = read_text(path)
    with blamed_on(path, "it is no YAML"):
        try:
            found = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else "?"
            raise FileError(f"{path}, line {line}: {error.problem or 'this is no YAML'}") from error
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error
        _require_few(found)
    return found


def _require_few(found: Any) -> None:
    """Aliases share what they stand for; written out, as OmegaConf does, they may fill any memory."""
    waiting, left = [found], YAML_NODES
    while waiting:
        left -= 1
        if left < 0:
            raise ValueError(f"it stands for more than {YAML_NODES:,} values")
        match waiting.pop():
            case dict() as mapping:
                waiting += [*mapping.keys(), *mapping.values()]
            case list() | tuple() | set() as several:
                waiting += several


def entry(found: dict[str, Any], key: str, kind: type | tuple[type, ...], file: object) -> Any:
    """``found[key]``, which must be of ``kind``; a number must be finite, and bool is no int.

    Raises:
        FileError: names the file and the key.
    """
    if key not in found:
        raise FileError(f"{file}: it has no {key}")
    value, kinds = found[key], kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, bool) and bool not in kinds:
        good = False
    elif isinstance(value, int) and float in kinds:
        good = abs(value) < 1 << 63
    else:
        good = isinstance(value, kinds) and not (isinstance(value, float) and not math.isfinite(value))
    if not good:
        raise FileError(f"{file}: its {key} must be {' or '.join(one.__name__ for one in kinds)}, not {_named(value)}")
    return value


def metrics_row(line: bytes, path: Path) -> dict[str, Any] | None:
    """None where it is no row of ``metrics.jsonl``: a kill has cut it off."""
    try:
        row = parse_json(line, path)
    except FileError:
        return None
    step = row.get("step")
    return row if type(step) is int and 0 <= step < 1 << 53 else None


def valid(text: str) -> str:
    """A text that can be written and printed: half a surrogate pair, which JSON and YAML can hold, becomes U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def encoded(token: str) -> bytes:
    """UTF-8, of a text whose lone surrogates are bytes, as "surrogateescape" has them; other halves are U+FFFD."""
    return re.sub("[\ud800-\udc7f\udd00-\udfff]", "\ufffd", token).encode("utf-8", "surrogateescape")


def _named(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 60 else f"{text[:60]} ..."
