"""A user's mistake is one line on stderr and exit code 2; a bug of ours keeps its traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

OURS = ("nemo_cdt", "launchers", "benchmarks")


@contextmanager
def reported(files: bool = True) -> Iterator[None]:
    """Exit with 2 on a ValueError that our code raised, and on an OSError where its ``files`` are the user's to mend.

    Another's ValueError is a bug.
    """
    try:
        yield
    except OSError as error:
        if not files:
            raise
        fail(str(error))
    except ValueError as error:
        if not is_ours(error):
            raise
        fail(str(error))


def fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def is_ours(error: BaseException) -> bool:
    """Whether the innermost frame is ours: the code that said ``raise``."""
    package, traceback = "", error.__traceback__
    while traceback is not None:
        package = traceback.tb_frame.f_globals.get("__package__") or ""
        traceback = traceback.tb_next
    return package.partition(".")[0] in OURS
