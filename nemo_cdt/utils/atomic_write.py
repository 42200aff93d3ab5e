"""Folders and files that are there whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """A folder beside ``destination`` to write into; it takes that name when the block ends well, or is removed.

    Raises:
        ValueError: where ``destination`` is there already and not an empty folder.
    """
    named, destination = destination, real(destination)  # a link onto an empty folder is not replaced: what it names is
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise ValueError(f"{named} already exists and is not empty; name a new folder")
    partial = beside(destination)
    partial.mkdir(parents=True)  # refused where it is there: what is removed below is what was made here
    try:
        yield partial
        with_usual_modes(partial)
        partial.replace(destination)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def with_usual_modes(folder: Path) -> None:
    """Lets whoever may look into ``folder`` read its files: safetensors writes them for their owner alone."""
    readable = folder.stat().st_mode & 0o444
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o777 | readable)


def beside(path: Path) -> Path:
    """A hidden name in the same folder that nothing has. A process id would come again, in containers at each start."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}")


def real(path: Path) -> Path:
    """From the root on, links followed. ``Path.resolve`` raises RuntimeError for a link that leads back to itself.

    ``new/../mine`` is ``mine`` here, whether or not ``new`` is there yet. To the system nothing exists by that name
    until ``new`` does: look at what a path holds by its real name.
    """
    return Path(os.path.realpath(path))


def atomic_write(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all; an older one is replaced."""
    with new_file(path) as partial, partial.open("x", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A name to write a file to; it takes that of ``path`` when the block ends well, or is removed.

    It ends as ``path`` does: numpy and torch choose a format by that.
    """
    partial = path.with_name(f".{secrets.token_hex(6)}.{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def traceless(folder: Path, names: Collection[str]) -> Iterator[None]:
    """Where the block fails and nothing is new in ``folder`` but some of ``names``, those new ones are removed.

    The caller keeps others from writing there meanwhile. What was there before stays, and small files by the same names
    get back what they held, but for logs, which are named with a ``*``.
    """
    before = {*folder.iterdir()}
    held = {path: path.read_bytes() for path in map(folder.joinpath, names) if _is_small(path)}
    try:
        yield
    except BaseException:
        new = [path for path in folder.iterdir() if path not in before]
        if all(any(path.match(name) for name in names) for path in new):
            for path in new:
                _remove(path)
            for path, data in held.items():
                if path.read_bytes() != data:
                    atomic_write(path, data.decode("utf-8", "surrogateescape"))
        raise


def _is_small(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 20


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)
