"""What no model can be, whatever file says it."""

import math
from dataclasses import fields

from nemo_cdt.config import Model

MOST = {
    "num_layers": 10_000,
    "hidden_size": 1_000_000,
    "ffn_hidden_size": 10_000_000,
    "num_attention_heads": 100_000,
    "num_query_groups": 100_000,
    "head_dim": 100_000,
    "vocab_size": 100_000_000,
    "max_positions": 1_000_000_000,
    "sliding_window": 1_000_000_000,
}
"""Far beyond any model: above it a file is damaged, and would ask for all memory."""
OPTIONAL = {"head_dim", "vocab_size", "sliding_window"}
SHARES = {"attention_dropout", "hidden_dropout"}


def require_possible(model: Model) -> None:
    """Raise ValueError for a size that is no size, a number that is none, or heads that do not divide.

    It names the fields as ``conf/model`` does; the caller names the file.
    """
    for name, most in MOST.items():
        value = getattr(model, name)
        if not (value is None and name in OPTIONAL) and not (type(value) is int and 0 < value <= most):
            raise ValueError(f"its {name} is {str(value)[:60]}, and must be a whole number of 1 to {most:,}")
    for name in ("rotary_base", "norm_epsilon", "init_std", *sorted(SHARES)):
        value = getattr(model, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not (number and value >= 0 and (value > 0 or name != "rotary_base") and (value < 1 or name not in SHARES)):
            raise ValueError(f"its {name} is {str(value)[:60]}")
    for field in fields(Model):
        if field.type in (bool, "bool") and not isinstance(getattr(model, field.name), bool):
            raise ValueError(f"its {field.name} is {str(getattr(model, field.name))[:60]}, and must be true or false")
    heads, groups = model.num_attention_heads, model.num_query_groups
    if heads % groups:
        raise ValueError(f"its {groups} groups of keys do not divide its {heads} heads")
    if model.head_size < 2 or model.head_size % 2:
        raise ValueError(f"its heads have {model.head_size} dimensions, and RoPE turns pairs")
    _require_rope(model)


def _require_rope(model: Model) -> None:
    scaling = model.rope_scaling
    for field in fields(scaling):
        value = getattr(scaling, field.name)
        if field.name == "rope_type" or (value is None and field.name == "attention_factor"):
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not (number and value > 0):
            raise ValueError(f"its rope_scaling.{field.name} is {str(value)[:60]}")
