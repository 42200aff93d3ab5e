"""OUTPUT/job.json: what a launched run is known by. It is read as somebody else's file: nothing in it is expanded."""

import json
import re
from dataclasses import asdict, fields
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from nemo_cdt.config.launcher import Launcher, LauncherName
from nemo_cdt.launch.job import Job
from nemo_cdt.utils.atomic_write import atomic_write
from nemo_cdt.utils.reading import blamed_on, entry, read_json
from nemo_cdt.validation import check_launcher
from nemo_cdt.validation.jobs import K8S_NAME

JOB = "job.json"
KEYS = {"launcher": dict, "output": str, "ids": list}
MOST = 1 << 20
"""Bytes of the file: a hundred jobs and every key of a launcher have some ten thousand."""
ID, NAME = "[0-9]{1,18}", rf"(?=.{{1,63}}$){K8S_NAME}"
PID, TIME = "[1-9][0-9]{0,9}", r"[0-9]{1,12}(\.[0-9]{1,9})?"


def remember(job: Job) -> None:
    folder = Path(job.output)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / JOB, json.dumps(asdict(job), indent=1))


def recall(run: Path) -> Job:
    """Raises ValueError where RUN has no job, or one that no launcher has written."""
    file = run / JOB
    try:
        file.lstat()
    except OSError as error:
        if not run.is_dir():
            raise ValueError(f"{run} does not exist: give the output of a run that a launcher has started") from error
        if points := sorted(str(file.parent) for file in run.glob(f"*/{JOB}")):
            raise ValueError(f"{run} is a sweep: give one of its points, {', '.join(points)}") from error
        raise ValueError(f"{run} has no {JOB}: give the output of a run that a launcher has started") from error
    with blamed_on(file):
        found = read_json(file, most=MOST)
        if unknown := sorted(found.keys() - KEYS):
            raise ValueError(f"{unknown[0]!r} is no key of it: there are {', '.join(KEYS)}")
        given, output, ids = (entry(found, key, kind, file) for key, kind in KEYS.items())
        launcher = _launcher(given)
        # here the folder is told by what is asked for, from wherever that is
        job = Job(launcher, output if launcher.elsewhere else str(run), ids)
        check_launcher(launcher, "run", output if launcher.elsewhere else "run", str(file))
        _check_ids(launcher.name, ids)
    return job


def _check_ids(launcher: LauncherName, ids: list[Any]) -> None:
    expected = {LauncherName.local: [PID, TIME], LauncherName.kubernetes: [NAME]}.get(launcher, [ID] * len(ids))
    told = all(isinstance(each, str) for each in ids) and len(ids) == len(expected) > 0
    if not (told and all(map(re.fullmatch, expected, ids))):
        raise ValueError(f"its ids={json.dumps(ids)[:100]} are none of launcher={launcher}")


def _launcher(given: dict[str, Any]) -> Launcher:
    """Each value of its key's type, as it is written: OmegaConf would look into ``${...}``."""
    hints = get_type_hints(Launcher)
    if unknown := sorted(given.keys() - {key.name for key in fields(Launcher)}):
        raise ValueError(f"{unknown[0]!r} is no key of a launcher")
    return Launcher(**{key: _typed(hints[key], value, key) for key, value in given.items()})


def _typed(hint: Any, value: Any, key: str) -> Any:
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return None if value is None else _typed(inner[0], value, key)
    if kind is list and isinstance(value, list):
        return [_typed(inner[0], each, key) for each in value]
    if kind is dict and isinstance(value, dict):
        return {name: _typed(inner[1], each, key) for name, each in value.items()}
    if isinstance(hint, type) and issubclass(hint, Enum) and value in [*hint]:
        return hint(value)
    # bool is an int to isinstance, and no int to a launcher; a number of Slurm's or Kubernetes' has 64 bits
    if hint is Any or (type(value) is hint and not (isinstance(value, int) and abs(value) >= 1 << 63)):
        return value
    raise ValueError(f"its launcher.{key} is {json.dumps(value)[:60]}, which is no value of it")
