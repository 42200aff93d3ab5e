"""Whether the weights of a checkpoint are those of the model that a run asks for."""

import math
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from nemo_cdt.config.schema import Model, RopeScaling, RopeType

OURS = {"name", "init_std", "fp32_residual", "tokenizer", "max_positions", "attention_dropout", "hidden_dropout"}
"""To choose, whatever the weights."""
ROPE = {"rotary_base", "rope_scaling"}
"""To choose too, for a longer context; another value than the weights' by mistake trains another model."""
AS = {"head_dim": "head_size", "rope_scaling": "rope"}
"""Properties in which these are compared: they may say the same in two ways."""


def differing(model: Model, found: Model) -> dict[str, tuple[Any, Any]]:
    """What ``model`` and ``found`` say of each key in which they compute something else.

    A vocabulary that is not known fits any. Numbers are compared as numbers: transformers writes 1e-5 as
    9.999999747378752e-06 where it was in fp32.
    """
    there = {}
    for field in fields(Model):
        compared = AS.get(field.name, field.name)
        ours, theirs = getattr(model, compared), getattr(found, compared)
        unknown = field.name == "vocab_size" and None in (ours, theirs)
        if field.name not in OURS and not unknown and not _same(ours, theirs):
            there[field.name] = (ours, theirs)
    return there


def _same(one: Any, other: Any) -> bool:
    if is_dataclass(one) and is_dataclass(other) and not isinstance(one, type) and not isinstance(other, type):
        return all(_same(value, asdict(other)[key]) for key, value in asdict(one).items())
    if type(one) is float and type(other) is float:
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def require_fitting(model: Model, found: Model, where: str) -> None:
    """Raise ValueError, which names ``where``, unless weights of ``found`` are those of what ``model`` asks for.

    Another RoPE passes: :func:`nemo_cdt.config.init.with_model_of_init` has seen that it was asked for.

    Args:
        where: the setting and the folder, as a user wrote them.
    """
    wrong = {name: both for name, both in differing(model, found).items() if name not in ROPE}
    if wrong:
        asked = ", ".join(as_override(name, wanted) for name, (wanted, _) in wrong.items())
        right = " ".join(as_override(name, there) for name, (_, there) in wrong.items())
        raise ValueError(f"{asked}, but {where} has {right}: leave them out, the model is that of init")


def as_override(name: str, value: object) -> str:
    """As Hydra reads it on a command line."""
    if name == "rope_scaling":
        value = value or RopeScaling(rope_type=RopeType.none)
    if isinstance(value, RopeScaling):
        value = "{" + ",".join(f"{key}:{_plain(each)}" for key, each in asdict(value).items()) + "}"
    return f"model.{name}={_plain(value)}"


def _plain(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
