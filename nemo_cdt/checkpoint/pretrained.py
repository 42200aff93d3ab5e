"""What a Hugging Face folder says of itself, checked before anything heavy is imported or any code works with it."""

import math
from pathlib import Path
from typing import Any

from nemo_cdt.utils.reading import FileError, blamed_on, entry, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

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
    require_numbers(found, file)
    for name in ("rope_scaling", "rope_parameters"):
        if found.get(name) is not None:
            _require_rope(entry(found, name, dict, file), name, file)
    return found


def require_numbers(found: dict[str, Any], file: Path) -> None:
    """The same of some of its entries."""
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


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a model's weights.

    Raises:
        ValueError: where there are none, or the index names what is no file of the folder's own.
    """
    if (folder / INDEX).exists():
        return _shards(folder / INDEX)
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    with blamed_on(folder):
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth"})
    if pickled:
        raise ValueError(f"{folder} has pickled weights only ({pickled[0]}); save it as safetensors")
    raise ValueError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}")


def _shards(index: Path) -> list[Path]:
    names = entry(read_json(index), "weight_map", dict, index).values()
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name:
            raise FileError(f"{index}: a shard is a safetensors file of the same folder, not {str(name)[:200]!r}")
    if not names:
        raise FileError(f"{index}: its weight_map is empty")
    files = [index.parent / name for name in sorted({*names})]
    for file in files:
        with blamed_on(index):
            if not file.is_file():
                raise ValueError(f"it names {file.name[:200]}, which is not there")
    return files
