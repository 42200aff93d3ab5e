"""The checkpoints of a run: ``OUTPUT/checkpoints/step=N``, with the links ``last`` and ``best``.

Nothing else there is a run's: a copy that a user keeps as ``step=4-mine`` is neither resumed from nor removed.
"""

import os
import re
from pathlib import Path

from nemo_cdt.utils.atomic_write import beside

STEP = re.compile(r"step=([0-9]{1,18})")


def finished_checkpoints(folder: Path) -> list[Path]:
    """By their steps. NeMo marks one that is being written, or removed, as unfinished."""
    found = [path for path in folder.glob("step=*") if STEP.fullmatch(path.name) and path.is_dir()]
    return sorted((path for path in found if not Path(f"{path}-unfinished").exists()), key=step_of)


def latest_checkpoint(folder: Path) -> Path | None:
    """The finished checkpoint with the most steps, or None."""
    return next(reversed(finished_checkpoints(folder)), None)


def steps_done(folder: Path) -> int:
    latest = latest_checkpoint(folder)
    return step_of(latest) if latest else 0


def step_of(checkpoint: Path) -> int:
    """The number of steps that it has done."""
    found = STEP.fullmatch(checkpoint.name)
    if found is None:
        raise ValueError(f"{checkpoint} is called neither step=N nor last")
    return int(found[1])


def set_aside(damaged: Path) -> Path:
    """Gives it a name that no resumption looks at, and removes nothing. A link to it goes, or means the one before."""
    folder, place = damaged.parent, damaged.with_name(f"{damaged.name}-damaged")
    number = 1
    while place.exists():
        number += 1
        place = damaged.with_name(f"{damaged.name}-damaged{number}")
    links = [link for link in (folder / "last", folder / "best") if link.is_symlink()]
    meant = [link for link in links if os.readlink(link) == damaged.name]
    damaged.rename(place)
    for link in meant:
        before = latest_checkpoint(folder)
        if link.name == "last" and before:
            point(link, before)
        else:
            link.unlink()
    return place


def point(link: Path, target: Path) -> None:
    """Makes ``link`` mean ``target``, which lies beside it, at once."""
    partial = beside(link)
    partial.symlink_to(target.name)
    partial.replace(link)
