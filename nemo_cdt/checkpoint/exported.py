"""The folder of an exported model: which run made it, and what of it may be replaced.

A run marks what it exports with a file that has the run's id and a list of what was written. A folder is replaced only
where it has that mark and holds nothing else, each file as it was written, and removed file by file: what is the user's
is never removed.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nemo_cdt.checkpoint.run_id import made_run_id, run_id
from nemo_cdt.checkpoint.sums import sum_of
from nemo_cdt.utils.atomic_write import atomic_write, beside, real, with_usual_modes
from nemo_cdt.utils.reading import FileError, entry, read_json

MARK = "nemo_cdt_export.json"


class ExportError(ValueError):
    """The folder holds what would be lost. Its text begins with the folder."""


def require_replaceable(folder: Path, output: Path) -> None:
    """Raise ExportError where ``folder`` is there and is anything else than what the run in ``output`` has exported."""
    _replaced(folder, output)


@contextmanager
def replacing(folder: Path, output: Path) -> Iterator[Path]:
    """A new path beside ``folder`` to export to, which takes its place when the block ends well.

    A kill at any moment leaves the old folder, or the new, or both under other names.

    Raises:
        ExportError: as :func:`require_replaceable`, before and after the block.
    """
    folder = real(folder)  # what a link names is replaced, not the link
    _replaced(folder, output)
    new = beside(folder)
    new.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield new
        with_usual_modes(new)
        atomic_write(new / MARK, json.dumps({"run": made_run_id(output), "files": _listed(new)}, indent=1))
        _swap(folder, new, _replaced(folder, output))
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)  # made here, and by nobody's name but ours
        raise


def _listed(folder: Path) -> dict[str, list[Any]]:
    """Of each file its size and its sum: a model that was trained further has the same sizes."""
    return {name: list(sum_of(folder / name)) for name in _files(folder)}


def _swap(folder: Path, new: Path, listed: dict[str, int]) -> None:
    if not folder.exists():
        new.replace(folder)
        return
    old = beside(folder)
    folder.rename(old)
    try:
        new.replace(folder)
    except BaseException:
        old.rename(folder)
        raise
    _remove(old, listed)


def _remove(folder: Path, files: dict[str, int]) -> None:
    """Of ``folder`` these files, and the folders that are empty then. What else came into it stays."""
    for name in files:
        (folder / name).unlink(missing_ok=True)
    inner = {parent for name in files for parent in (folder / name).parents if folder in parent.parents}
    for each in (*sorted(inner, reverse=True), folder):
        with suppress(OSError):
            each.rmdir()


def _replaced(folder: Path, output: Path) -> dict[str, int]:
    """The files of ``folder`` with their sizes, all of which the run in ``output`` has exported; the mark too."""
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise ExportError(f"{folder} is no folder")
    found = _files(folder)
    if not found:
        return {}
    if MARK not in found:
        raise ExportError(f"{folder} is not empty, and no {MARK} says that {min(found)} in it is this run's")
    run, listed = _marked(folder / MARK)
    if run != run_id(output):
        raise ExportError(f"{folder} is not empty: {min(found)} and what else is in it was exported by another run")
    ours = {name: size for name, size in found.items() if name != MARK}
    foreign = [name for name, size in ours.items() if size < 0 or (listed.get(name) or [None])[0] != size]
    foreign = foreign or [name for name in ours if list(sum_of(folder / name)) != listed[name]]
    if foreign:
        raise ExportError(f"{folder} is not empty: {min(foreign)} in it is not as this run exported it")
    return found


def _marked(mark: Path) -> tuple[str, dict[str, list[Any]]]:
    """Whose mark it is, and what it lists."""
    try:
        of = read_json(mark)
        files = entry(of, "files", dict, mark)
        if not all(isinstance(each, list) and len(each) == 2 for each in files.values()):
            raise FileError(f"{mark}: its files must have a size and a sum each")
        return entry(of, "run", str, mark), files
    except ValueError as error:
        raise ExportError(str(error)) from error


def _files(folder: Path) -> dict[str, int]:
    """By its path there, the size of everything in ``folder`` but folders; -1 of a link and of an empty folder."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            found[str(path.relative_to(folder))] = -1
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.stat().st_size
        elif not any(path.iterdir()):
            found[str(path.relative_to(folder))] = -1
    return found
