"""Folders and files that are there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """A folder beside ``destination`` to write into; it takes that name when the block ends well, or is removed.

    Raises:
        ValueError: where ``destination`` is there already and not an empty folder.
    """
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise ValueError(f"{destination} already exists and is not empty; name a new folder")
    partial = destination.with_name(f".{destination.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(destination)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all; an older one is replaced."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
