"""The data that a run trains on, by their sums: a run that goes on with others is another run."""

import json
from pathlib import Path

from nemo_cdt.checkpoint.sums import Sum, sum_of
from nemo_cdt.config import Config
from nemo_cdt.prepared import SUMMARY
from nemo_cdt.utils.atomic_write import atomic_write
from nemo_cdt.utils.reading import blamed_on, entry, read_json
from nemo_cdt.validation.rules import require

RECORD = "data.json"
"""In OUTPUT: of each file of ``data`` its bytes and their sum."""


def record_data(config: Config) -> None:
    """Writes what the run trains on; where it is written already, that stays."""
    file = Path(config.output, RECORD)
    if not file.exists():
        atomic_write(file, json.dumps({key: list(sum) for key, sum in _sums(config).items()}, indent=1) + "\n")


def require_same_data(config: Config) -> None:
    """Raise ValueError where ``data`` are no longer what the run in OUTPUT has trained on."""
    file = Path(config.output, RECORD)
    if not file.exists():  # of a version that wrote none
        return
    before = read_json(file)
    for key, (size, total) in _sums(config).items():
        if key in before:
            old, its = entry(before, key, list, file)
            require(
                [old, its] == [size, total],
                f"{key} holds other rows than those that the run in output={config.output} has trained on ({size:,} "
                f"bytes, and {old:,} then): bring them back to resume it, or set another output",
            )


def _sums(config: Config) -> dict[str, Sum]:
    """By the key of ``data`` and the file: a file of rows, the summary of prepared ones, each text of a haystack."""
    found = {}
    for key, path in (("data.path", config.data.path), ("data.validation_path", config.data.validation_path)):
        if path is not None:
            for file in _files(config, Path(path)):
                with blamed_on(file):
                    found[f"{key}={path}" if file == Path(path) else f"{key}={file}"] = sum_of(file)
    return found


def _files(config: Config, path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if config.data.name.is_prepared:
        return [path / SUMMARY]
    return sorted(file for file in path.rglob("*") if file.is_file())
