"""The checkpoints of a run: NeMo's distributed ones, in OUTPUT/checkpoints, and the one that it starts from."""

import logging
from dataclasses import asdict, fields
from pathlib import Path

from filelock import FileLock

from nemo_cdt.config import Config, Model, RopeScaling, RopeType
from nemo_cdt.nemo import distributed, huggingface
from nemo_cdt.nemo.convert import convert
from nemo_cdt.validation import check_vocabulary

log = logging.getLogger(__name__)


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
        ValueError: where it holds another architecture than the ``model`` group, or a vocabulary that cannot be split.
    """
    if config.init.nemo:
        found = distributed.read_model(Path(config.init.nemo))
        _require_fitting(config, found, f"init.nemo={config.init.nemo}")
        return Path(config.init.nemo).resolve(), found.vocab_size
    if not config.init.hf:
        return None, config.model.vocab_size
    found = huggingface.read_model(Path(config.init.hf))
    _require_fitting(config, found, f"init.hf={config.init.hf}")
    converted = Path(config.output, "init").resolve()
    with FileLock(f"{config.output}/.init.lock"):  # one rank converts, the others wait and find it
        if not converted.exists():
            convert(Path(config.init.hf), converted)
    return converted, found.vocab_size


OURS = {"name", "init_std", "fp32_residual", "tokenizer", "max_positions", "attention_dropout", "hidden_dropout"}
"""To choose, whatever the weights."""
ROPE = {"rotary_base", "rope_scaling"}
"""Of these another value extends the context, or is a mistake: it is said."""
AS = {"head_dim": "head_size", "rope_scaling": "rope"}
"""Properties in which these are compared: they may say the same in two ways."""


def _require_fitting(config: Config, found: Model, where: str) -> None:
    check_vocabulary(config, found.vocab_size or 0, where)
    model, differing = config.model, {}
    for field in fields(Model):
        compared = AS.get(field.name, field.name)
        wanted, there = getattr(model, compared), getattr(found, compared)
        if field.name not in OURS and wanted != there and not (field.name == "vocab_size" and wanted is None):
            differing[field.name] = (wanted, there)
    for name in [name for name in differing if name in ROPE]:
        wanted, there = (_as_override(name, value) for value in differing.pop(name))
        log.warning(f"{wanted}, where {where} has {there}: its context is extended, or this is a mistake")
    if differing:
        asked = ", ".join(_as_override(name, wanted) for name, (wanted, _) in differing.items())
        right = " ".join(_as_override(name, there) for name, (_, there) in differing.items())
        raise ValueError(f"{asked}, but {where} differs: set {right}")


def _as_override(name: str, value: object) -> str:
    """As Hydra reads it on a command line."""
    if name == "rope_scaling":
        value = value or RopeScaling(rope_type=RopeType.none)
    if isinstance(value, RopeScaling):
        value = "{" + ",".join(f"{key}:{_plain(each)}" for key, each in asdict(value).items()) + "}"
    return f"model.{name}={_plain(value)}"


def _plain(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
