"""Where a run writes: what is there must not be lost, and there must be a place."""

import os
from pathlib import Path

from nemo_cdt.config import Config
from nemo_cdt.resumption import earlier_attempt, require_same_run
from nemo_cdt.validation.rules import require


def check_output(config: Config) -> None:
    output = Path(config.output)
    for name, value in (("name", config.name), ("output", config.output)):
        require(value != "", f"{name} is empty: set {name} to a name of the run's own")
    require(
        config.resume or not (output / "config.yaml").exists(),
        f"output={output} already holds a run: set resume=true to continue it, or another output, or remove it",
    )
    require(
        (output / "config.yaml").exists() or not any(output.glob("checkpoints/step=*")),
        f"output={output} has checkpoints, but no config.yaml that says of what: bring it back, or set another output",
    )
    _check_writable("output", output)
    earlier = earlier_attempt(config)
    if earlier is not None:
        require_same_run(config, earlier)
    if config.export.hf is not None:
        _check_export(config, earlier, Path(config.export.hf))


def _check_export(config: Config, earlier: Config | None, folder: Path) -> None:
    _check_writable("export.hf", folder)
    require(
        config.init.hf is None or folder.resolve() != Path(config.init.hf).resolve(),
        f"export.hf={folder} is init.hf itself: set another folder",
    )
    require(
        (earlier is not None and earlier.export.hf == config.export.hf)  # what is there is that attempt's: replaced
        or not folder.is_dir()
        or not any(folder.iterdir()),
        f"export.hf={folder} is not empty: set another folder",
    )


def _check_writable(name: str, path: Path) -> None:
    parent = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    require(parent.is_dir(), f"{name}={path}: {parent} is a file, set {name} to a folder")
    require(os.access(parent, os.W_OK), f"{name}={path}: {parent} is not writable")
