"""The model that a Hugging Face folder's ``config.json`` describes, read without transformers: it costs no import."""

import math
from pathlib import Path
from textwrap import shorten
from typing import Any

from nemo_cdt.config.schema import Family, Model, RopeScaling, RopeType
from nemo_cdt.utils.reading import FileError, blamed_on, entry, read_json

ARCHITECTURES = {
    "LlamaForCausalLM": Family.llama,
    "MistralForCausalLM": Family.mistral,
    "Qwen2ForCausalLM": Family.qwen2,
    "Qwen3ForCausalLM": Family.qwen3,
}
_COMMON: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "head_dim": None,
}
_QWEN: dict[str, Any] = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
DEFAULTS: dict[Family, dict[str, Any]] = {
    Family.llama: _COMMON
    | {"vocab_size": 32000, "intermediate_size": 11008, "num_key_value_heads": None, "max_position_embeddings": 2048},
    Family.mistral: _COMMON
    | {"vocab_size": 32000, "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072}
    | {"sliding_window": 4096},
    Family.qwen2: _COMMON | _QWEN,
    Family.qwen3: _COMMON | _QWEN | {"head_dim": 128},
}
"""What transformers takes where a ``config.json`` is silent; a test holds them against its classes."""

REQUIRED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "use_mrope": False,
    "quantization_config": None,
}
"""Where a ``config.json`` says otherwise, Megatron would compute something else."""

NEEDED: dict[str, type] = {
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), int),
    **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings"), int),
    **dict.fromkeys(("rope_theta", "rms_norm_eps", "attention_dropout", "initializer_range"), float),
    "tie_word_embeddings": bool,
}
"""Not null, once what is left out has its default."""

ROPE_FIELDS = {
    RopeType.llama3: {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    RopeType.yarn: {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"},
}
_ROPE_NEEDED = {RopeType.llama3: ROPE_FIELDS[RopeType.llama3], RopeType.yarn: {"factor"}}

MOST = {
    "num_hidden_layers": 1 << 12,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 30,
    "sliding_window": 1 << 30,
    "num_labels": 1 << 16,
}
"""Numbers of ``config.json`` from 1 on: tens of times those of any model, and what a computer can still count to."""
POSITIVE = ("rope_theta", "rms_norm_eps")
FRACTIONS = ("attention_dropout", "initializer_range")
YES_OR_NO = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "use_mrope")
ROPE_NUMBERS = (
    *("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    *("beta_fast", "beta_slow", "attention_factor", "rope_theta", "partial_rotary_factor"),
)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``, whose numbers are such as a model can have. What it leaves out or calls null is not looked at.

    Raises:
        FileError: names the file, the key and the value.
    """
    file = folder / "config.json"
    found = read_json(file)
    _require_numbers(found, file)
    for name in ("rope_scaling", "rope_parameters"):
        if found.get(name) is not None:
            _require_rope(entry(found, name, dict, file), name, file)
    return found


def _require_numbers(found: dict[str, Any], file: Path) -> None:
    for name in (name for name in MOST if found.get(name) is not None):
        if not 1 <= entry(found, name, int, file) <= MOST[name]:
            raise FileError(f"{file}: its {name} must be from 1 to {MOST[name]:,}, not {found[name]}")
    for name in (name for name in POSITIVE if found.get(name) is not None):
        if not entry(found, name, float, file) > 0:
            raise FileError(f"{file}: its {name} must be above 0, not {found[name]}")
    for name in (name for name in FRACTIONS if found.get(name) is not None):
        if not 0 <= entry(found, name, float, file) <= 1:
            raise FileError(f"{file}: its {name} must be from 0 to 1, not {found[name]}")
    for name in (name for name in YES_OR_NO if found.get(name) is not None):
        entry(found, name, bool, file)


def _require_rope(rope: dict[str, Any], of: str, file: Path) -> None:
    for name in (name for name in ROPE_NUMBERS if rope.get(name) is not None):
        value = rope[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise FileError(f"{file}: its {of}.{name} must be a number from 0 on, not {str(value)[:60]}")


def read_model(folder: Path) -> Model:
    """The architecture in ``config.json``, its vocabulary not padded.

    Raises:
        ValueError: for what is of no :class:`Family`, or what Megatron would compute differently.
    """
    file = folder / "config.json"
    with blamed_on(file, whatever=True):
        return _model(folder, file, read_config(folder))


def _model(folder: Path, file: Path, raw: dict[str, Any]) -> Model:
    family = ARCHITECTURES.get(str((raw.get("architectures") or [None])[0]))
    if family is None:
        raise _unknown(folder, f"config.json says architectures={_brief(raw.get('architectures'))}")
    said = DEFAULTS[family] | raw
    rope = _rope(folder, raw)
    said["rope_theta"] = rope.pop("rope_theta", said["rope_theta"])
    said["partial_rotary_factor"] = rope.pop("partial_rotary_factor", said.get("partial_rotary_factor", 1.0))
    if said["num_key_value_heads"] is None:
        said["num_key_value_heads"] = said["num_attention_heads"]
    wrong = [name for name, value in REQUIRED.items() if said.get(name, value) != value]
    if wrong:
        raise _unknown(folder, f"config.json says {wrong[0]}={_brief(said[wrong[0]])}, not {REQUIRED[wrong[0]]}")
    for name, kind in NEEDED.items():
        entry(said, name, kind, file)
    heads, groups, hidden = said["num_attention_heads"], said["num_key_value_heads"], said["hidden_size"]
    if heads % groups:
        raise _unknown(folder, f"num_key_value_heads={groups} does not divide num_attention_heads={heads}")
    head_dim = said["head_dim"]
    if head_dim is None and hidden % heads:
        raise _unknown(folder, f"num_attention_heads={heads} does not divide hidden_size={hidden}")
    return Model(
        name=folder.resolve().name,
        family=family,
        num_layers=said["num_hidden_layers"],
        hidden_size=hidden,
        ffn_hidden_size=said["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=groups,
        head_dim=None if head_dim and head_dim * heads == hidden else head_dim,
        qkv_bias=family is Family.qwen2,
        qk_norm=family is Family.qwen3,
        sliding_window=_sliding_window(folder, family, said),
        attention_dropout=said["attention_dropout"],
        vocab_size=said["vocab_size"],
        max_positions=said["max_position_embeddings"],
        rotary_base=float(said["rope_theta"]),
        rope_scaling=_rope_scaling(folder, rope, said["max_position_embeddings"]),
        norm_epsilon=float(said["rms_norm_eps"]),
        init_std=float(said["initializer_range"]),
        tied_embeddings=said["tie_word_embeddings"],
    )


def _unknown(folder: Path, reason: str) -> FileError:
    return FileError(f"{folder} is no Hugging Face model of {', '.join(Family)}: {reason}")


def _brief(value: object) -> str:
    return shorten(str(value), width=200, placeholder=" ...")


def _rope(folder: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """RoPE in one spelling. Transformers 4 writes ``rope_theta`` and ``rope_scaling``, 5 one ``rope_parameters``."""
    scaling, parameters = ({} if raw.get(name) is None else raw[name] for name in ("rope_scaling", "rope_parameters"))
    rope = {name: value for name, value in (scaling | parameters).items() if value is not None}
    for name in scaling.keys() & parameters.keys():
        if scaling[name] != parameters[name]:
            raise _unknown(
                folder,
                f"config.json says rope_scaling.{name}={_brief(scaling[name])} and "
                f"rope_parameters.{name}={_brief(parameters[name])}: remove one of the two",
            )
    return rope


def _sliding_window(folder: Path, family: Family, said: dict[str, Any]) -> int | None:
    """Mistral's is that of every layer, Qwen's of those that ``layer_types`` names, and Llama has none."""
    if family is Family.mistral:
        return said["sliding_window"]
    if family is Family.llama or not said["use_sliding_window"]:
        return None
    window, full, layers = said["sliding_window"], said["max_window_layers"], said["num_hidden_layers"]
    kinds = set(said.get("layer_types") or ["full_attention"])
    if len(said.get("layer_types") or range(layers)) != layers:
        raise _unknown(folder, f"config.json has layer_types of {len(said['layer_types'])} layers, not of {layers}")
    if not said.get("layer_types") and window is not None:
        kinds = {"sliding_attention" if layer >= full else "full_attention" for layer in range(layers)}
    if len(kinds) > 1:
        raise _unknown(
            folder,
            f"config.json says use_sliding_window=True with max_window_layers={full}: "
            f"{' in some layers and '.join(sorted(kinds))} in others",
        )
    return window if kinds == {"sliding_attention"} else None


def _rope_scaling(folder: Path, rope: dict[str, Any], positions: int) -> RopeScaling:
    scaling = dict(rope)
    older = scaling.pop("type", None)
    kind = scaling.pop("rope_type", older or "default")
    if older not in (None, kind):
        raise _unknown(
            folder, f"config.json says rope_type={_brief(kind)} and type={_brief(older)}: remove one of the two"
        )
    if kind == "default":
        return RopeScaling(rope_type=RopeType.none)
    if kind not in [*ROPE_FIELDS]:
        raise _unknown(folder, f"its RoPE scaling is {_brief(kind)}; only {', '.join(ROPE_FIELDS)}, or none, is known")
    if unknown := sorted(scaling.keys() - ROPE_FIELDS[kind]):
        said = _brief(f"{unknown[0]}={scaling[unknown[0]]}")
        raise _unknown(folder, f"config.json says rope_scaling.{said}, which is not known")
    if missing := sorted(_ROPE_NEEDED[RopeType(kind)] - scaling.keys()):
        raise _unknown(folder, f"config.json says rope_scaling.rope_type={kind} without {missing[0]}")
    scaling.setdefault("original_max_position_embeddings", positions)  # as transformers does
    return RopeScaling(rope_type=RopeType(kind), **scaling)
