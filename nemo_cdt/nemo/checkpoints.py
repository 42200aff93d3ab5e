"""The checkpoints of a run: NeMo's distributed ones, in OUTPUT/checkpoints, and the one that it starts from."""

from dataclasses import fields
from pathlib import Path

from filelock import FileLock

from nemo_cdt.config import Config, Model
from nemo_cdt.nemo import distributed, huggingface
from nemo_cdt.nemo.convert import convert


def finished_checkpoints(folder: Path) -> list[Path]:
    """By their steps. NeMo marks one that is being written, or removed, as unfinished."""
    found = [p for p in folder.glob("step=*") if p.is_dir() and not (folder / f"{p.name}-unfinished").exists()]
    return sorted(found, key=step_of)


def latest_checkpoint(folder: Path) -> Path | None:
    """The finished checkpoint with the most steps, or None."""
    return next(reversed(finished_checkpoints(folder)), None)


def steps_done(folder: Path) -> int:
    latest = latest_checkpoint(folder)
    return step_of(latest) if latest else 0


def step_of(checkpoint: Path) -> int:
    """The number of steps that it has done."""
    return int(checkpoint.name.removeprefix("step="))


def initial_checkpoint(config: Config) -> tuple[Path | None, int | None]:
    """What ``init`` names, as a NeMo checkpoint, and the vocabulary size that it or ``model`` sets.

    A Hugging Face model is converted into OUTPUT/init, once. The path is absolute: checkpoints of adapters record it.

    Raises:
        ValueError: where it holds another architecture than the ``model`` group.
    """
    if config.init.nemo:
        found = distributed.read_model(Path(config.init.nemo))
        _require_same(config.model, found, f"init.nemo={config.init.nemo}")
        return Path(config.init.nemo).resolve(), found.vocab_size
    if not config.init.hf:
        return None, config.model.vocab_size
    found = huggingface.read_model(Path(config.init.hf))
    _require_same(config.model, found, f"init.hf={config.init.hf}")
    converted = Path(config.output, "init").resolve()
    with FileLock(f"{config.output}/.init.lock"):  # one rank converts, the others wait and find it
        if not converted.exists():
            convert(Path(config.init.hf), converted)
    return converted, found.vocab_size


def _require_same(model: Model, found: Model, where: str) -> None:
    ours = {"name", "init_std", "fp32_residual", "tokenizer", "max_positions"}  # ours to choose, whatever the weights
    for field in fields(Model):
        wanted, there = getattr(model, field.name), getattr(found, field.name)
        if field.name not in ours and wanted != there and not (field.name == "vocab_size" and wanted is None):
            raise ValueError(f"model.{field.name}={wanted}, but {where} has {there}: set model.{field.name}={there}")
