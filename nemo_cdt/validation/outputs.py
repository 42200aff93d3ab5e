"""Where a run writes: what is there must not be lost, and there must be a place."""

import os
from pathlib import Path

from nemo_cdt.config import Config
from nemo_cdt.config.resumption import earlier_attempt, require_same_run
from nemo_cdt.frameworks import framework_of_checkpoints
from nemo_cdt.validation.framework import check_checkpoints
from nemo_cdt.validation.places import check_apart, check_export, plain, require_plain
from nemo_cdt.validation.rules import require
from nemo_cdt.validation.same_data import require_same_data


def check_output(config: Config) -> None:
    output = Path(config.output)
    for name, value in (("name", config.name), ("output", config.output)):
        require(value != "", f"{name} is empty: set {name} to a name of the run's own")
    require_plain(output)
    require(
        config.resume or not (output / "config.yaml").exists(),
        f"output={output} already holds a run: set resume=true to continue it, or another output, or remove it",
    )
    require(
        (output / "config.yaml").exists() or framework_of_checkpoints(output / "checkpoints") is None,
        f"output={output} has checkpoints, but no config.yaml that says of what: bring it back, or set another output",
    )
    _check_writable("output", output)
    earlier = earlier_attempt(config)
    check_checkpoints(config)
    if earlier is not None:
        require_same_run(config, earlier)
        require_same_data(config)
    if config.export.hf is not None:
        _check_writable("export.hf", Path(config.export.hf))
    check_places(config, earlier)


def check_places(config: Config, earlier: Config | None) -> None:
    """Raise ValueError where what the run writes would replace what it reads, or what is not its own."""
    check_apart(config, earlier)
    check_export(config)


def _check_writable(name: str, path: Path) -> None:
    absolute = plain(path).absolute()
    places = (absolute, *absolute.parents)
    parent = next(folder for folder in places if folder.exists())
    lost = next((folder for folder in places if folder.is_symlink() and not folder.exists()), None)
    require(lost is None, f"{name}={path}: {lost} is a link that leads nowhere, set {name} to a folder")
    require(parent.is_dir(), f"{name}={path}: {parent} is a file, set {name} to a folder")
    require(os.access(parent, os.W_OK), f"{name}={path}: {parent} is not writable")
