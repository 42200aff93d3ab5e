"""Megatron-Bridge's checkpoints of a run: ``OUTPUT/checkpoints/iter_0000012``, the last of which a file names."""

from pathlib import Path

LATEST = "latest_checkpointed_iteration.txt"


def steps_done(folder: Path) -> int:
    """Of the last checkpoint that is whole: Bridge writes its number when it is."""
    try:
        return int((folder / LATEST).read_text())
    except (FileNotFoundError, ValueError):
        return 0
