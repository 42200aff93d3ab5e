"""A user's mistake is one line on stderr and exit code 2, a training that failed one and 1; a bug has a traceback."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

OURS = ("nemo_cdt", "benchmarks")
FAILED = "training failed in"
"""How the line of a failure begins that is no mistake of the user's."""


class SeveralError(ValueError):
    """Mistakes that were found together, a line each.

    Attributes:
        lines: what is wrong, and what to set instead.
    """

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


class TrainingFailedError(RuntimeError):
    """No mistake that could be seen before: all ranks raise it, the first one says it."""


@contextmanager
def reported(files: bool = True) -> Iterator[None]:
    """Exit with 2 on a ValueError that our code raised, and on an OSError where its ``files`` are the user's to mend.

    Another's ValueError is a bug. Exits with 1 on a TrainingFailedError.
    """
    try:
        yield
    except TrainingFailedError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {FAILED} {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        if not files:
            raise
        fail(str(error))
    except ValueError as error:
        told = str(error) if is_ours(error) else _of_worker(error)
        if told is None:
            raise
        fail(*(error.lines if isinstance(error, SeveralError) else [told]))


def fail(*messages: str) -> NoReturn:
    for message in messages:
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, at length, begins with this; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip()


def _of_worker(error: ValueError) -> str | None:
    """What our code raised in a worker of torch's DataLoader, which makes one text of the error and its traceback."""
    if not re.match(r"Caught \w+ in DataLoader worker process", text := str(error)):
        return None
    files = re.findall(r'^  File "(.+)", line \d+', text, re.MULTILINE)
    if not any(Path(files[-1]).is_relative_to(Path(__file__).parents[2] / name) for name in OURS):
        return None
    return text.strip().splitlines()[-1].partition(": ")[2]


def is_ours(error: BaseException) -> bool:
    """Whether the innermost frame is ours: the code that said ``raise``."""
    package, traceback = "", error.__traceback__
    while traceback is not None:
        package = traceback.tb_frame.f_globals.get("__package__") or ""
        traceback = traceback.tb_next
    return package.partition(".")[0] in OURS
