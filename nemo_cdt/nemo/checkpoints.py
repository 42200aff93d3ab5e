"""The checkpoint that a run starts from."""

import logging
from dataclasses import asdict, fields
from pathlib import Path

from filelock import FileLock

from nemo_cdt.checkpoint.verification import require_whole
from nemo_cdt.config import Config, Model, RopeScaling, RopeType
from nemo_cdt.nemo import distributed, huggingface
from nemo_cdt.nemo.convert import convert
from nemo_cdt.validation import check_vocabulary

log = logging.getLogger(__name__)


def initial_checkpoint(config: Config) -> tuple[Path | None, int | None]:
    """What ``init`` names, as a NeMo checkpoint, and the vocabulary size that it or ``model`` sets.

    A Hugging Face model is converted into OUTPUT/init, once. The path is absolute: checkpoints of adapters record it.

    Raises:
        ValueError: where it holds another architecture than the ``model`` group, or a vocabulary that cannot be split,
            and where a checkpoint is damaged or holds more than data.
    """
    sums = config.trainer.verify_checkpoints
    if config.init.nemo:
        require_whole(Path(config.init.nemo), sums=sums)
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
    require_whole(converted, sums=sums)
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
