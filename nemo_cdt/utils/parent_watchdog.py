"""A process ends with the one that it works for, however that one ended: SIGKILL runs no handler and leaves orphans."""

import multiprocessing
import os
import select
import signal
import threading
from collections.abc import Callable

LAUNCHER = "NEMO_CDT_LAUNCHER"
"""The environment variable in which a launcher tells its ranks its process id."""


def end_with_launcher() -> None:
    """For a rank, which torchrun starts in a session of its own: it ends with its launcher, and all that it started."""
    if LAUNCHER in os.environ:
        _watch(int(os.environ[LAUNCHER]), lambda: os.killpg(0, signal.SIGKILL))


def end_with_parent() -> None:
    """For a process of :mod:`multiprocessing` that serves its parent until that has ended, whatever signal comes."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    _watch(parent.pid, lambda: os._exit(1))


def _watch(pid: int, end: Callable[[], None]) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return end()

    def wait() -> None:
        select.select([handle], [], [])  # readable once it has ended
        end()

    threading.Thread(target=wait, daemon=True).start()
