"""SIGTERM ends a command in order, as Ctrl-C does, so that what it has half written is removed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Terminated(BaseException):
    """SIGTERM came. No SystemExit, which is Ctrl-C's to NeMo's trainer."""


@contextmanager
def told_by_sigterm() -> Iterator[None]:
    """SystemExit where SIGTERM comes within it, and nobody within it has a handler of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(signum: int, _frame: object) -> None:
        if signal.getsignal(signum) is on_signal:  # while Lightning trains it has a handler of its own, which saves
            raise _Terminated

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    except _Terminated:
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, before)
