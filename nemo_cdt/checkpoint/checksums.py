"""Checksums of a checkpoint's files: taken while they are written, compared before they are read.

``checksums.json`` lies in the checkpoint's folder and has the size and the XXH3-128 of each file but itself and
``weights/adapter_metadata.json``, which is meant to be edited when a base model moves. They tell damage, not an attack:
whoever can change a file can change its sum. What runs no code is :mod:`nemo_cdt.checkpoint.unpickling`'s work.
"""

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from nemo_cdt.checkpoint.sums import BLOCK, Sum, sum_of
from nemo_cdt.utils.atomic_write import atomic_write
from nemo_cdt.utils.reading import FileError, blamed_on, entry, read_json

CHECKSUMS = "checksums.json"
ALGORITHM = "xxh3_128"
EDITABLE = "weights/adapter_metadata.json"
THREADS = 8
"""That read at once: a file system of a cluster gives one reader a fraction of what it has."""


class _Summing(io.FileIO):
    """A file that tells the sum of what was written, when it is closed.

    Where somebody writes at another place than the end there is no sum, and the file is read back.
    """

    def __init__(self, path: str, tell: Callable[[Sum], object]) -> None:
        super().__init__(path, "wb")
        self._tell, self._sum, self._size, self._in_order = tell, xxh3_128(), 0, True

    def write(self, data: Any) -> int:
        written = super().write(data)
        self._sum.update(memoryview(data).cast("B")[:written])
        self._size += written
        return written

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place = super().seek(offset, whence)
        self._in_order &= place == self._size
        return place

    def close(self) -> None:
        if not self.closed and self._in_order:
            self._tell((self._size, self._sum.hexdigest()))
        super().close()


def open_summed(path: str, tell: Callable[[Sum], object]) -> io.BufferedWriter:
    """A file to write, whose sum ``tell`` is called with when it is closed."""
    return io.BufferedWriter(_Summing(path, tell), BLOCK)


@contextmanager
def noting(folder: str) -> Iterator[None]:
    """Megatron's writers that start within it leave the sums of the ``.distcp`` files that they write in ``folder``.

    They may be other processes, and may end long after it.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    def open_noted(path: str, mode: str) -> io.BufferedWriter:
        assert mode == "wb"
        return open_summed(path, partial(_note, Path(folder, Path(path).name)))

    # Megatron names neither its writer's class nor its `open` to its callers: the module's own name is the door.
    filesystem_async.open = open_noted  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del filesystem_async.open  # type: ignore[attr-defined]


def noted(folder: str) -> dict[str, Sum]:
    """Those sums, by the files' names."""
    found = {note.name: note.read_text().split() for note in Path(folder).iterdir()}
    return {name: (int(size), total) for name, (size, total) in found.items()}


def _note(file: Path, found: Sum) -> None:
    with suppress(OSError):  # a full /tmp costs one more reading, not a checkpoint
        file.write_text("{} {}".format(*found))


def write_checksums(checkpoint: Path, known: Mapping[str, Sum]) -> None:
    """``checksums.json`` of a folder that is written otherwise.

    Args:
        known: sums that were taken while the ``.distcp`` files of those names were written; others are read back.
    """
    files = {str(path.relative_to(checkpoint)): path for path in sorted(checkpoint.rglob("*")) if path.is_file()}
    counted = {name: path for name, path in files.items() if name not in (CHECKSUMS, EDITABLE)}
    with ThreadPoolExecutor(THREADS) as pool:
        sums = pool.map(lambda path: known.get(path.name) or sum_of(path), counted.values())
        listed = {name: {"bytes": size, "sum": total} for name, (size, total) in zip(counted, sums, strict=True)}
    text = json.dumps({"algorithm": ALGORITHM, "files": listed}, indent=1)
    atomic_write(checkpoint / CHECKSUMS, text + "\n")


def has_checksums(checkpoint: Path) -> bool:
    """False for one of before there were any, and for NeMo's own. What is there by that name and no file is damage."""
    return os.path.lexists(checkpoint / CHECKSUMS)


def compare(checkpoint: Path, mine: Callable[[str], bool] = lambda _: True) -> None:
    """Raise ValueError, which names the first file that is missing, of another size, or changed.

    Args:
        mine: which of the files, by their paths in the checkpoint, are compared; ranks share them.
    """
    file = checkpoint / CHECKSUMS
    found = read_json(file)
    if entry(found, "algorithm", str, file) != ALGORITHM:
        raise FileError(f"{file}: its algorithm is {found['algorithm'][:100]!r}, but only {ALGORITHM} is known")
    _require_all(checkpoint, entry(found, "files", dict, file), file)
    listed = [(n, *_listed(each, f"{file}: {n}")) for n, each in entry(found, "files", dict, file).items() if mine(n)]
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(lambda one: _compare(checkpoint, *one), listed):
            pass


def _require_all(checkpoint: Path, listed: Mapping[str, Any], file: Path) -> None:
    """Raise FileError where a file that is read is not listed: a shorter list would vouch for it."""
    weights = (f"weights/{path.name}" for path in (checkpoint / "weights").iterdir() if path.is_file())
    for name in (*weights, "context/model.yaml"):
        if name not in listed and name != EDITABLE and (checkpoint / name).exists():
            raise FileError(f"{file}: it does not list {name}")


def _listed(each: Any, where: str) -> Sum:
    if not isinstance(each, dict):
        raise FileError(f"{where} must have bytes and a sum")
    return entry(each, "bytes", int, where), entry(each, "sum", str, where)


def _compare(checkpoint: Path, name: str, size: int, total: str) -> None:
    path = checkpoint / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise FileError(f"{checkpoint / CHECKSUMS}: it lists {name[:100]!r}, which is not in its folder")
    with blamed_on(path):
        if not path.is_file():
            raise ValueError("it is missing")
        if (there := path.stat().st_size) != size:
            raise ValueError(f"it has {there:,} bytes, and had {size:,} when it was saved")
        if sum_of(path)[1] != total:
            raise ValueError("it has changed since it was saved: its checksum is another")
