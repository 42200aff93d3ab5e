"""Whether the weights of a checkpoint are those of the model that a run asks for."""

import logging
from dataclasses import asdict, fields

from nemo_cdt.config import Model, RopeScaling, RopeType

log = logging.getLogger(__name__)

OURS = {"name", "init_std", "fp32_residual", "tokenizer", "max_positions", "attention_dropout", "hidden_dropout"}
"""To choose, whatever the weights."""
ROPE = {"rotary_base", "rope_scaling"}
"""Of these another value extends the context, or is a mistake: it is said."""
AS = {"head_dim": "head_size", "rope_scaling": "rope"}
"""Properties in which these are compared: they may say the same in two ways."""


def require_fitting(model: Model, found: Model, where: str) -> None:
    """Raise ValueError, which names ``where``, unless weights of ``found`` are those of what ``model`` asks for.

    Args:
        where: the setting and the folder, as a user wrote them.
    """
    differing = {}
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
