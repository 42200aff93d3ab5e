"""Terminals as one finds them: output that nobody reads, and alphabets without our characters."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path


def sound_streams() -> None:
    """Makes stdout and stderr such that a ``print`` can neither fail nor go into a file that is opened later.

    Call it before anything is opened: a closed stdout leaves its number, 1, to the next file.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            _open_nowhere(number)
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def read_or_silent() -> Iterator[None]:
    """Ends in silence where nobody reads stdout any more, as behind ``| head``; another pipe's end is an error."""
    try:
        yield
    except BrokenPipeError:
        waiting = select.poll()
        waiting.register(sys.stdout.fileno(), 0)
        if not any(event & select.POLLERR for _, event in waiting.poll(0)):
            raise
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # Python would fail once more when it ends
            _open_nowhere(sys.stdout.fileno())


def _open_nowhere(number: int) -> None:
    """For the processes that this one starts, which inherit the number."""
    opened = os.open(os.devnull, os.O_WRONLY)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    os.set_inheritable(number, True)
