"""The checkpoints of a run: NeMo's distributed ones, in OUTPUT/checkpoints."""

from pathlib import Path


def latest_checkpoint(folder: Path) -> str | None:
    """The finished checkpoint with the most steps, or None. NeMo marks one that is being written as unfinished."""
    found = [p for p in folder.glob("step=*") if p.is_dir() and not p.is_symlink()]
    finished = [p for p in found if not (folder / f"{p.name}-unfinished").exists()]
    return str(max(finished, key=_step)) if finished else None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step=").split("-")[0])
