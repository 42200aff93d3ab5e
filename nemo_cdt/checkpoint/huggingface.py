"""A Hugging Face model's folder: its architecture, its weights, its tokenizer. Reads nothing that is pickled."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from nemo_cdt.checkpoint.pretrained import INDEX, read_config, require_numbers, weight_files
from nemo_cdt.config import Family, Model, RopeScaling, RopeType
from nemo_cdt.utils.reading import FileError, blamed_on, entry, read_json

TOKENIZER_FILES = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
]
"""What travels with the weights. An instruction-tuned model's further end tokens are in ``generation_config.json``."""

CONFIGS: dict[Family, type[PretrainedConfig]] = {
    Family.llama: LlamaConfig,
    Family.mistral: MistralConfig,
    Family.qwen2: Qwen2Config,
    Family.qwen3: Qwen3Config,
}
ARCHITECTURES = {
    "LlamaForCausalLM": Family.llama,
    "MistralForCausalLM": Family.mistral,
    "Qwen2ForCausalLM": Family.qwen2,
    "Qwen3ForCausalLM": Family.qwen3,
}

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
"""Of the configuration that transformers makes of it: not null."""

ROPE_FIELDS = {
    RopeType.llama3: {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    RopeType.yarn: {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"},
}


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
    try:
        config = CONFIGS[family].from_dict(_rope_of_transformers_4(raw))
    except Exception as error:
        raise _unknown(folder, f"transformers refuses its config.json ({_brief(error)})") from error
    require_numbers(vars(config), file)
    wrong = [name for name, value in REQUIRED.items() if getattr(config, name, value) != value]
    if wrong:
        said = _brief(getattr(config, wrong[0]))
        raise _unknown(folder, f"config.json says {wrong[0]}={said}, not {REQUIRED[wrong[0]]}")
    for name, kind in NEEDED.items():
        entry(vars(config), name, kind, file)
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if heads % groups:
        raise _unknown(folder, f"num_key_value_heads={groups} does not divide num_attention_heads={heads}")
    head_dim = getattr(config, "head_dim", None)
    if head_dim is None and config.hidden_size % heads:
        raise _unknown(folder, f"num_attention_heads={heads} does not divide hidden_size={config.hidden_size}")
    return Model(
        name=folder.resolve().name,
        family=family,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_attention_heads=heads,
        num_query_groups=groups,
        head_dim=None if head_dim and head_dim * heads == config.hidden_size else head_dim,
        qkv_bias=family is Family.qwen2,
        qk_norm=family is Family.qwen3,
        sliding_window=_sliding_window(folder, config),
        attention_dropout=config.attention_dropout,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        rotary_base=float(config.rope_theta),
        rope_scaling=_rope_scaling(folder, config),
        norm_epsilon=config.rms_norm_eps,
        init_std=config.initializer_range,
        tied_embeddings=config.tie_word_embeddings,
    )


def _unknown(folder: Path, reason: str) -> FileError:
    return FileError(f"{folder} is no Hugging Face model of {', '.join(Family)}: {reason}")


def _brief(value: object) -> str:
    return shorten(str(value), width=200, placeholder=" ...")


def _rope_of_transformers_4(raw: dict[str, Any]) -> dict[str, Any]:
    """Transformers 5 writes ``rope_parameters``, which version 4 passes over in silence: another RoPE."""
    rope = raw.pop("rope_parameters", None)
    if not rope:
        return raw
    partial = {name: rope[name] for name in ("partial_rotary_factor",) if name in rope}
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    return raw | {"rope_theta": rope.get("rope_theta"), "rope_scaling": scaling} | partial


def _sliding_window(folder: Path, config: PretrainedConfig) -> int | None:
    """Mistral's is that of every layer, Qwen's of those that ``layer_types`` names, and Llama has none."""
    if isinstance(config, MistralConfig):
        return config.sliding_window
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if len(kinds) > 1:
        raise _unknown(
            folder,
            f"config.json says use_sliding_window={config.use_sliding_window} with max_window_layers="
            f"{config.max_window_layers}: {' in some layers and '.join(sorted(kinds))} in others",
        )
    return config.sliding_window if kinds == {"sliding_attention"} else None


def _rope_scaling(folder: Path, config: PretrainedConfig) -> RopeScaling:
    scaling = {
        name: value for name, value in (getattr(config, "rope_scaling", None) or {}).items() if value is not None
    }
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    scaling.pop("type", None)
    if kind == "default":
        return RopeScaling(rope_type=RopeType.none)
    if kind not in [*ROPE_FIELDS]:
        raise _unknown(folder, f"its RoPE scaling is {_brief(kind)}; only {', '.join(ROPE_FIELDS)}, or none, is known")
    if unknown := sorted(scaling.keys() - ROPE_FIELDS[kind]):
        said = _brief(f"{unknown[0]}={scaling[unknown[0]]}")
        raise _unknown(folder, f"config.json says rope_scaling.{said}, which is not known")
    scaling.setdefault("original_max_position_embeddings", config.max_position_embeddings)  # as transformers does
    return RopeScaling(rope_type=RopeType(kind), **scaling)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors, mapped from the files and read when they are used.

    Raises:
        ValueError: where there are no safetensors, or damaged ones.
    """
    weights: dict[str, Tensor] = {}
    for file in weight_files(folder):
        with blamed_on(file, "it is no whole safetensors file", whatever=True):
            weights |= load_file(file)
    return weights


def save(folder: Path, weights: Mapping[str, Tensor], model: Model) -> None:
    """Weights, in shards, and ``config.json``, into a folder that already holds the tokenizer, if there is one."""
    dtype = weights["model.embed_tokens.weight"].dtype
    config_of(model, dtype, folder).save_pretrained(folder)
    # Without their storage, which views of one tensor share: for that they would all be put into one shard.
    shards = split_torch_state_dict_into_shards({n: torch.empty_like(w, device="meta") for n, w in weights.items()})
    for file, names in shards.filename_to_tensors.items():
        save_file({name: weights[name].contiguous() for name in names}, folder / file, metadata={"format": "pt"})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def config_of(model: Model, dtype: torch.dtype, tokenizer: Path) -> PretrainedConfig:
    """What ``config.json`` says of ``model`` and of the tokenizer in a folder, if there is one."""
    architecture = next(name for name, family in ARCHITECTURES.items() if family is model.family)
    return CONFIGS[model.family](
        architectures=[architecture],
        num_hidden_layers=model.num_layers,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_query_groups,
        attention_dropout=model.attention_dropout,
        vocab_size=model.vocab_size,
        max_position_embeddings=model.max_positions,
        rope_theta=model.rotary_base,
        rope_scaling=model.rope and _written(model.rope),
        rms_norm_eps=model.norm_epsilon,
        initializer_range=model.init_std,
        tie_word_embeddings=model.tied_embeddings,
        torch_dtype=dtype,
        **_of_family(model),
        **_special_tokens(tokenizer, model.vocab_size or 0),
    )


def _of_family(model: Model) -> dict[str, Any]:
    """Head size and sliding window, as each family says them."""
    window = model.sliding_window
    if model.family in (Family.llama, Family.mistral):
        return {"head_dim": model.head_dim} | ({"sliding_window": window} if model.family is Family.mistral else {})
    head = {"head_dim": model.head_size} if model.family is Family.qwen3 or model.head_dim else {}
    full_layers = 0 if window else model.num_layers
    return head | {"use_sliding_window": bool(window), "sliding_window": window, "max_window_layers": full_layers}


def _written(scaling: RopeScaling) -> dict[str, Any]:
    fields = {name: getattr(scaling, name) for name in scaling.__slots__ if name in ROPE_FIELDS[scaling.rope_type]}
    return {"rope_type": str(scaling.rope_type)} | {k: v for k, v in fields.items() if v is not None}


def _special_tokens(folder: Path, vocabulary: int) -> dict[str, Any]:
    """Of the tokenizer, as far as the model has them: transformers makes no model with a padding token beyond."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    if not has_tokenizer(folder):
        return dict.fromkeys(names)
    with blamed_on(folder, "it holds no tokenizer", whatever=True):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    found = {name: getattr(tokenizer, name) for name in names}
    return {name: token if token is not None and token < vocabulary else None for name, token in found.items()}


def has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").is_file()


def copy_tokenizer(source: Path, destination: Path) -> None:
    destination.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            if name.endswith(".json"):
                read_json(source / name)
            shutil.copyfile(source / name, destination / name)
