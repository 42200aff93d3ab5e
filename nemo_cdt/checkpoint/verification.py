"""Whether a checkpoint is whole and holds nothing but data: asked before anything reads it, by all ranks together.

Each rank looks at a share of the files, so that a 70B's terabyte is read once by all and not once by each; then all
know what any has found.
"""

import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from torch import distributed

from nemo_cdt.checkpoint import checksums, unpickling
from nemo_cdt.checkpoint.steps import STEP, finished_checkpoints, set_aside, step_of
from nemo_cdt.utils.reading import FileError

log = logging.getLogger(__name__)

PATIENCE = timedelta(hours=2)
"""For the slowest rank's share."""

Share = Callable[[str], bool]
"""Which files are this rank's to look at, by name."""


def verify(checkpoint: Path, *, sums: bool = True, mine: Share = lambda _: True) -> None:
    """Raise ValueError, a line that names the file, where the checkpoint is unfinished, damaged or could run code.

    Args:
        checkpoint: a folder with ``weights/``.
        sums: compare the files with the checksums that were saved; one that has none is read as it is.
        mine: the share of the files that is looked at.
    """
    if not (checkpoint / "weights/metadata.json").is_file() or Path(f"{checkpoint}-unfinished").exists():
        raise ValueError(f"{checkpoint} is no finished NeMo checkpoint: its weights/metadata.json was written last")
    if sums and not checksums.has_checksums(checkpoint):
        if _older_have_some(checkpoint):
            raise FileError(f"{checkpoint / checksums.CHECKSUMS}: it is missing, and an older checkpoint has its own")
        log.info(f"{checkpoint} has no {checksums.CHECKSUMS}: it is read as it is, whole or not")
    if sums and checksums.has_checksums(checkpoint):
        checksums.compare(checkpoint, mine)
    unpickling.check(checkpoint, mine)


def _older_have_some(checkpoint: Path) -> bool:
    """Whether this one of a run was saved when checkpoints had checksums already."""
    if not STEP.fullmatch(checkpoint.name):
        return False
    older = (each for each in finished_checkpoints(checkpoint.parent) if step_of(each) < step_of(checkpoint))
    return any(map(checksums.has_checksums, older))


def require_whole(checkpoint: Path, *, sums: bool = True) -> None:
    """:func:`verify` by all ranks, each its share. Raises the same on every rank."""
    if fault := _fault(checkpoint, sums):
        raise ValueError(fault["text"])


def newest_whole(folder: Path, *, sums: bool = True) -> Path | None:
    """The newest finished checkpoint of ``OUTPUT/checkpoints`` that is whole; None where there is none finished.

    Newer ones that are damaged are set aside, and said. Call it on all ranks.

    Raises:
        ValueError: where there are some and none is whole, or where they cannot be read now.
    """
    damaged: list[tuple[Path, str]] = []
    for checkpoint in reversed(finished_checkpoints(folder)):
        fault = _fault(checkpoint, sums)
        if fault is None:
            for each, text in damaged:
                place = _once(lambda each=each: str(set_aside(each)))  # type: ignore[misc]
                log.warning(f"{text}. {each.name} is set aside as {place}; {checkpoint.name} is whole and is resumed")
            return checkpoint
        if fault["passing"]:
            raise ValueError(fault["text"])
        damaged.append((checkpoint, fault["text"]))
    if damaged:
        raise ValueError(
            f"none of {', '.join(each.name for each, _ in damaged)} in {folder} is whole, the newest because of "
            f"{damaged[0][1]}: restore them, or set another output"
        )
    return None


def _fault(checkpoint: Path, sums: bool) -> dict[str, Any] | None:
    """What any rank has found, the first rank's first."""
    rank, world = _place()

    def mine(name: str) -> bool:
        return zlib.crc32(Path(name).name.encode()) % world == rank

    found = None
    try:
        verify(checkpoint, sums=sums, mine=mine)
    except ValueError as error:
        cause = error.__cause__
        passing = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
        found = {"text": str(error), "passing": passing}
    return next(filter(None, _from_all(found)), None)


def _once(act: Callable[[], str]) -> str:
    """What the first rank's ``act`` gave; on every rank, and only when it is done."""
    return next(filter(None, _from_all(act() if _place()[0] == 0 else None)))


def _place() -> tuple[int, int]:
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _from_all(mine: Any) -> list[Any]:
    """What every rank gave, in their order. Through torchrun's store: there is no process group yet."""
    rank, world = _place()
    if world == 1:
        return [mine]
    store, number = _meeting()
    store.set(f"{number}/{rank}", json.dumps(mine))
    found = []
    for other in range(world):
        store.wait([f"{number}/{other}"], PATIENCE)
        found.append(json.loads(store.get(f"{number}/{other}")))
    # The first rank may host the store: it waits until all have read.
    store.set(f"{number}/read/{rank}", "")
    if rank == 0:
        store.wait([f"{number}/read/{other}" for other in range(world)], PATIENCE)
    return found


def _meeting() -> tuple[Any, int]:
    """The store of this attempt's ranks, and how often they have met there."""
    where = tuple(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"))
    store, numbers = _store(where)
    return store, next(numbers)


@cache
def _store(where: tuple[str, ...]) -> tuple[Any, Iterator[int]]:
    """Kept until the end: training's own meeting, later, joins what the first rank hosts here."""
    store, *_ = next(distributed.rendezvous("env://", timeout=PATIENCE))
    return distributed.PrefixStore("checkpoints", store), count()
