"""Which run a folder is: an id that a run makes once, moves with its folder and does not share with a copy of it.

What a run has made elsewhere, an export or a run at a logger's server, is its own by this id alone.
"""

import json
import os
import secrets
from pathlib import Path

from nemo_cdt.utils.atomic_write import new_file, real
from nemo_cdt.utils.reading import entry, read_json

RUN_ID = ".run_id"
"""In OUTPUT, so that it moves with it."""


def run_id(output: Path) -> str | None:
    """The id of the run in ``output``; None where it has none yet, as a copy of a run has not.

    ``cp -a`` copies the file too. It is told from the original by being another file in another place: of a folder that
    was moved the file is the same, and where a file system renumbers its files the place is.
    """
    file = output / RUN_ID
    if not file.exists():
        return None
    said = read_json(file)
    if "inode" in said and said["inode"] != file.stat().st_ino and said.get("place") != str(real(output)):
        return None
    return entry(said, "run", str, file)


def made_run_id(output: Path) -> str:
    """The id of the run in ``output``, made where it has none."""
    known = run_id(output)
    if known is None:
        known = secrets.token_hex(16)
        with new_file(output / RUN_ID) as partial, partial.open("x", encoding="utf-8") as file:
            inode = os.fstat(file.fileno()).st_ino
            json.dump({"run": known, "inode": inode, "place": str(real(output))}, file)
    return known
