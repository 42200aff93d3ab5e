"""One run at a time in an OUTPUT: a lock that ends with the process that holds it, whatever signal ended that.

``OUTPUT/.lock`` is locked with ``fcntl.lockf``, a record lock of POSIX: a child does not inherit it, so that the ranks
that a killed launcher leaves behind do not keep the next start out; NFS and Lustre know it; and the kernel tells the
holder's process id, which no text in a file could be trusted with. What the file says, as JSON, is for people.

A process loses such a lock when it closes *any* descriptor of the file. So nothing else may open it while it is held:
:func:`held` and :func:`holder` look into :data:`_held` before they do.
"""

import errno
import fcntl
import json
import os
import shlex
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nemo_cdt.utils.reading import entry, parse_json

LOCK = ".lock"
KEYS = {"host": str, "pid": int, "time": str, "command": str}
MOST = 4096
"""Bytes of the file. It is written at once, so that a reader finds all of it or nothing."""
TAKEN = (errno.EACCES, errno.EAGAIN)
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
FLOCK = "hhqqi0q"
"""C's ``struct flock`` on Linux: type, whence, start, length, process id."""

_held: dict[tuple[int, int], int] = {}
"""Device and inode of what this process holds, and its id: after a fork the child has this too, and holds nothing."""


@contextmanager
def held(output: Path, wait: float = 0.0) -> Iterator[None]:
    """``output`` is this process's alone within; it is made where it is missing, and removed where it stays empty.

    Args:
        wait: seconds to wait for a holder on another machine. Of a machine that died a file server keeps the lock
            until it notices, on NFS some 90 seconds; on this machine the kernel tells at once.

    Raises:
        ValueError: where another run holds it: who, where and since when, and what to do.
    """
    file, made = Path(output, LOCK), make_folders(output)
    try:
        descriptor = _take(file, time.monotonic() + wait)
        try:
            about = os.fstat(descriptor)
            _held[about.st_dev, about.st_ino] = os.getpid()
            try:
                _say(descriptor)
                yield
            finally:
                del _held[about.st_dev, about.st_ino]
                file.unlink(missing_ok=True)  # while it is locked: who waits for it finds that it is another file
        finally:
            os.close(descriptor)
    finally:
        remove_folders(made)


def holder(output: Path) -> int | None:
    """The process of this machine that holds ``output``, by the kernel; None also for one of another machine."""
    file = Path(output, LOCK)
    try:
        about = file.lstat()
        if _is_ours(about):
            return os.getpid()
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        kind, _, _, _, pid = struct.unpack(FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, _whole_file()))
        owner = _owner(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    here = owner is None or owner["host"] == socket.gethostname()
    return pid if kind != fcntl.F_UNLCK and pid > 0 and here else None  # of another machine: 0, or below


def make_folders(folder: Path) -> list[Path]:
    """Make ``folder`` and what it lies in; those that were not there, the outermost first."""
    made: list[Path] = []
    for each in (*reversed(folder.parents), folder):
        try:
            if not each.is_dir():
                each.mkdir()
                made.append(each)
        except FileExistsError:
            pass
        except FileNotFoundError:  # another start has failed, and removed a folder that it had made
            return [*made, *make_folders(folder)]
    return made


def remove_folders(made: list[Path]) -> None:
    """Those of :func:`make_folders` that are empty."""
    with suppress(OSError):
        for each in reversed(made):
            each.rmdir()


def _take(file: Path, deadline: float) -> int:
    """A descriptor of the locked file."""
    while True:
        try:
            if _is_ours(file.lstat()):
                raise ValueError(f"output={file.parent} is in use by this process already: set another output")
        except FileNotFoundError:
            pass
        descriptor = _open(file)
        try:
            if _lock(file, descriptor):
                if _is(file, descriptor):
                    _require_ours(file, descriptor)
                    taken, descriptor = descriptor, -1
                    return taken
                continue  # its holder has ended, and removed it
            owner = _owner(descriptor)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        if not _is_elsewhere(owner) or time.monotonic() > deadline:
            raise ValueError(_refusal(file.parent, owner))
        time.sleep(1)


def _lock(file: Path, descriptor: int) -> bool:
    """Whether it is this process's now; where there are no locks, it is everybody's."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        if error.errno not in UNSUPPORTED:
            raise
        _warn(file)
    return True


def _open(file: Path) -> int:
    while True:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            return os.open(file, flags, 0o644)
        except FileNotFoundError:  # another start has failed, and removed the folder that it had made
            make_folders(file.parent)
            if file.parent.is_symlink() and not file.parent.is_dir():
                raise ValueError(f"output={file.parent} is a link that leads nowhere: set another output") from None
        except OSError as error:
            raise ValueError(f"{file} cannot be opened for the lock of a run: {error.strerror}") from error


def _is(file: Path, descriptor: int) -> bool:
    """Whether the file of that name still is the one that was opened."""
    try:
        there, here = file.lstat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _is_ours(about: os.stat_result) -> bool:
    return _held.get((about.st_dev, about.st_ino)) == os.getpid()


def _require_ours(file: Path, descriptor: int) -> None:
    """A file of the user's by this name must not be overwritten. A start that was killed early leaves it empty."""
    if os.fstat(descriptor).st_size and _owner(descriptor) is None:
        raise ValueError(f"{file} is no lock of a run: move it away, or set another output")


def _say(descriptor: int) -> None:
    command = shlex.join(sys.argv)[:1000]
    when = time.strftime("%Y-%m-%d %H:%M:%S %z")
    text = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "time": when, "command": command})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode()[:MOST], 0)


def _owner(descriptor: int) -> dict[str, Any] | None:
    """What its holder has said; None where that is nothing, or something else."""
    try:
        found = parse_json(os.pread(descriptor, MOST, 0), LOCK)
        return {key: entry(found, key, kind, LOCK) for key, kind in KEYS.items()}
    except (OSError, ValueError):
        return None


def _is_elsewhere(owner: dict[str, Any] | None) -> bool:
    return owner is not None and owner["host"] != socket.gethostname()


def _refusal(output: Path, owner: dict[str, Any] | None) -> str:
    if owner is None:
        who = "another run, which has only just started"
    else:
        # another's text: no control character of it may reach a terminal
        said = {key: "".join(c if c.isprintable() else "?" for c in str(value)) for key, value in owner.items()}
        who = f"process {said['pid']} on {said['host']} since {said['time']} ({said['command']})"
    return f"output={output} is in use by {who}: wait for its end, nemo-cdt cancel {output}, or set another output"


def _warn(file: Path) -> None:
    print(
        f"warning: the file system of {file.parent} has no locks: nothing keeps a second run out of it, and nemo-cdt "
        "status and cancel do not see this one",
        file=sys.stderr,
        flush=True,
    )


def _whole_file() -> bytes:
    return struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
