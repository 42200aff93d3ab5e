"""A Hugging Face Llama's folder: its architecture, its weights, its tokenizer. Reads nothing that is pickled."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig

from nemo_cdt.config import Model, RopeScaling

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

TOKENIZER_FILES = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
]
"""What travels with the weights. An instruction-tuned Llama's further end tokens are in ``generation_config.json``."""

REQUIRED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
}


def read_model(folder: Path) -> Model:
    """The architecture in ``config.json``, its vocabulary not padded.

    Raises:
        ValueError: for what is no Llama, or one that Megatron would compute differently.
    """
    raw = _json(folder / "config.json")
    if raw.get("architectures") != ["LlamaForCausalLM"]:
        raise _no_llama(folder, f"config.json says architectures={raw.get('architectures')}")
    try:
        config = LlamaConfig.from_dict(_rope_of_transformers_4(raw))
    except (KeyError, TypeError, ValueError) as error:
        raise _no_llama(folder, f"transformers refuses its config.json ({error})") from error
    wrong = [name for name, value in REQUIRED.items() if getattr(config, name, value) != value]
    if wrong:
        raise _no_llama(folder, f"config.json says {wrong[0]}={getattr(config, wrong[0])}, not {REQUIRED[wrong[0]]}")
    if config.num_attention_heads % config.num_key_value_heads:
        raise _no_llama(folder, f"num_key_value_heads={config.num_key_value_heads} does not divide num_attention_heads")
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        raise _no_llama(folder, f"head_dim={config.head_dim} is not hidden_size / num_attention_heads")
    return Model(
        name=folder.resolve().name,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_key_value_heads,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        rotary_base=float(config.rope_theta),
        rope_scaling=_rope_scaling(folder, config.rope_scaling),
        norm_epsilon=config.rms_norm_eps,
        init_std=config.initializer_range,
        tied_embeddings=config.tie_word_embeddings,
    )


def _no_llama(folder: Path, reason: str) -> ValueError:
    return ValueError(f"{folder} is no Hugging Face Llama: {reason}")


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _no_llama(path.parent, f"it has no readable {path.name}") from error


def _rope_of_transformers_4(raw: dict[str, Any]) -> dict[str, Any]:
    """Transformers 5 writes ``rope_parameters``, which version 4 passes over in silence: another RoPE."""
    rope = raw.pop("rope_parameters", None)
    return raw | {"rope_theta": rope.get("rope_theta"), "rope_scaling": rope} if rope else raw


def _rope_scaling(folder: Path, scaling: dict[str, Any] | None) -> RopeScaling | None:
    kind = scaling and scaling.get("rope_type", scaling.get("type"))
    if not scaling or kind == "default":
        return None
    if kind != "llama3":
        raise _no_llama(folder, f"its RoPE scaling is {kind}; only llama3, or none, is known")
    return RopeScaling(**{name: scaling[name] for name in RopeScaling.__slots__})


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors, mapped from the files and read when they are used.

    Raises:
        ValueError: where there are no safetensors, or damaged ones.
    """
    weights: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        try:
            weights |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} is no whole safetensors file ({error})") from error
    return weights


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        return [folder / name for name in sorted(set(_json(folder / INDEX)["weight_map"].values()))]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if pickled := sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth"}):
        raise ValueError(f"{folder} has pickled weights only ({pickled[0]}); save it as safetensors")
    raise ValueError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}")


def save(folder: Path, weights: Mapping[str, Tensor], model: Model) -> None:
    """Weights, in shards, and ``config.json``, into a folder that already holds the tokenizer, if there is one."""
    dtype = weights["model.embed_tokens.weight"].dtype
    _config(model, dtype, folder).save_pretrained(folder)
    # Without their storage, which views of one tensor share: for that they would all be put into one shard.
    shards = split_torch_state_dict_into_shards({n: torch.empty_like(w, device="meta") for n, w in weights.items()})
    for file, names in shards.filename_to_tensors.items():
        save_file({name: weights[name].contiguous() for name in names}, folder / file, metadata={"format": "pt"})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _config(model: Model, dtype: torch.dtype, tokenizer: Path) -> LlamaConfig:
    scaling = model.rope_scaling
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        num_hidden_layers=model.num_layers,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_query_groups,
        vocab_size=model.vocab_size,
        max_position_embeddings=model.max_positions,
        rope_theta=model.rotary_base,
        rope_scaling=scaling and {"rope_type": "llama3", **{n: getattr(scaling, n) for n in scaling.__slots__}},
        rms_norm_eps=model.norm_epsilon,
        initializer_range=model.init_std,
        tie_word_embeddings=model.tied_embeddings,
        torch_dtype=dtype,
        **_special_tokens(tokenizer),
    )


def _special_tokens(folder: Path) -> Mapping[str, int | None]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    if not has_tokenizer(folder):
        return dict.fromkeys(names)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return {name: getattr(tokenizer, name) for name in names}


def has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").is_file()


def copy_tokenizer(source: Path, destination: Path) -> None:
    destination.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)
