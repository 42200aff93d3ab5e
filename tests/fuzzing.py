"""Damaged files, and a watch over what reading them does.

:func:`mutations` damages bytes, :func:`json_mutations` values; :class:`Watch` fails where reading writes, starts or
connects to anything, or takes more memory than it may.
"""

import copy
import json
import os
import random
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_cdt.utils.user_errors import is_ours

HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 1e308, 1e-320, float("nan"), float("inf"), 0.5),
    *("", " ", "0", "-1", "../../x", "/etc/passwd", "~", "${oc.env:HOME}", "${.}", "\x00", "\ud800", "é" * 3),
    *("; touch executed", "$(touch executed)", "`touch executed`", "--help", "{{ 1 // 0 }}"),
    *("!!python/object:os.system", "x" * 5000),
    *([], {}, [[]], [None], ["x"] * 100, {"": ""}, {"x": {"x": {"x": {}}}}, [0] * 1000),
]  # fmt: skip


def mutations(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """``count`` damaged copies: bits flipped, cut off, parts removed, doubled, swapped or overwritten."""
    rng = random.Random(seed)
    for _ in range(count):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            size = len(damaged)
            start = rng.randrange(size) if size else 0
            end = min(size, start + rng.choice((1, 2, 4, 16, 64)))
            match rng.randrange(7):
                case 0 if size:
                    damaged[start] ^= 1 << rng.randrange(8)
                case 1:
                    del damaged[start:]
                case 2:
                    del damaged[start:end]
                case 3:
                    damaged[start:start] = damaged[start:end]
                case 4:
                    damaged[start:end] = rng.randbytes(end - start)
                case 5:
                    other = rng.randrange(size) if size else 0
                    damaged[start:end], damaged[other : other + end - start] = (
                        damaged[other : other + end - start],
                        damaged[start:end],
                    )
                case 6:
                    damaged[start:start] = rng.choice((b"\xff", b"\x00", b"{", b"]", b'"', b"\n", b"1e999", b"\\ud800"))
        yield bytes(damaged)


def json_mutations(value: Any, count: int, seed: int = 0) -> Iterator[Any]:
    """``count`` copies of what a JSON file holds with one to three values, at any depth, replaced, removed or added."""
    rng = random.Random(seed)
    for _ in range(count):
        damaged = copy.deepcopy(value)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            damaged = _damaged(damaged, rng)
        yield damaged


def _damaged(value: Any, rng: random.Random) -> Any:
    if not (isinstance(value, (dict, list)) and value) or rng.random() < 0.05:
        return copy.deepcopy(rng.choice(HOSTILE))
    keys = [*value] if isinstance(value, dict) else [*range(len(value))]
    key = rng.choice(keys)
    if isinstance(value[key], (dict, list)) and value[key] and rng.random() < 0.7:
        value[key] = _damaged(value[key], rng)
        return value
    match rng.randrange(8):
        case 0:
            del value[key]
        case 1 if isinstance(value, dict):
            value[rng.choice(["x", "", "\x00", "__class__", "../x"])] = copy.deepcopy(rng.choice(HOSTILE))
        case 2 if isinstance(value, dict):
            value[rng.choice(keys)] = copy.deepcopy(value[key])
        case _:
            value[key] = copy.deepcopy(rng.choice(HOSTILE))
    return value


def both(value: Any, count: int, seed: int = 0) -> Iterator[bytes]:
    """Files of ``count`` mutations of a JSON value: two thirds of its values, a third of its bytes."""
    for damaged in json_mutations(value, count - count // 3, seed):
        yield json.dumps(damaged).encode("utf-8", "surrogatepass")
    yield from mutations(json.dumps(value).encode(), count // 3, seed)


WRITES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree"}
STARTS = {"os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"}
STARTS |= {"subprocess.Popen", "socket.connect"}

_watching: list["Watch"] = []


class Watch:
    """What the process does while it reads: every file that it writes outside ``allowed``, everything it starts."""

    def __init__(self, allowed: Path) -> None:
        self.allowed = os.path.realpath(allowed)
        self.seen: list[str] = []

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in STARTS:
            self.seen.append(f"{event} {arguments[:2]}")
        elif event == "open":
            path, mode, flags = arguments
            written = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(flags, int) else "w" in str(mode)
            if written and isinstance(path, (str, bytes, os.PathLike)):
                self._outside(event, path)
        elif event in WRITES:
            self._outside(event, arguments[0])

    def _outside(self, event: str, path: Any) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        real = os.path.realpath(os.fsdecode(path))
        ours = real.startswith((self.allowed, "/dev/shm/pym-"))  # memory that multiprocessing shares is a file
        if not ours and real != "/dev/null" and "__pycache__" not in real:
            self.seen.append(f"{event} {real}")


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and (event == "open" or event in WRITES or event in STARTS):
        _watching[-1].note(event, arguments)


_hooked = False


@contextmanager
def watched(allowed: Path, memory_mib: int = 1024) -> Iterator[Watch]:
    """Fails where what happens within writes outside ``allowed``, starts a process, connects, or takes more memory."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    watch, before = Watch(allowed), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _watching.append(watch)
    try:
        yield watch
    finally:
        _watching.remove(watch)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    assert not watch.seen, watch.seen[:5]
    assert grown < memory_mib, f"{grown} MiB more"


def outcomes(files: Iterator[bytes], write: Callable[[bytes], Any], read: Callable[[], Any], ours: str) -> Counter:
    """Reads each of ``files``. How many were "read", and how many "refused" in one line that names ``ours``.

    Anything but a value or a ValueError that our code raised, in one line, fails with the file's bytes in the message.
    """
    counted: Counter = Counter()
    for number, data in enumerate(files):
        write(data)
        raised: BaseException | None = None
        try:
            read()
        except BaseException as error:
            raised = error
        told = f"mutation {number}: {raised!r} of {data[:2000]!r}"
        if raised is not None:
            assert isinstance(raised, ValueError), told
            assert is_ours(raised), told
            assert ours in str(raised), told
            assert len(str(raised)) < 2000, told
        counted["refused" if raised else "read"] += 1
    return counted
