"""A Hugging Face model's folder: its architecture, its weights, its tokenizer. Reads nothing that is pickled."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from nemo_cdt.checkpoint.pretrained import INDEX, weight_files
from nemo_cdt.checkpoint.weights import EMBEDDING, Weights
from nemo_cdt.config import Family, Model, RopeScaling
from nemo_cdt.config.huggingface import ARCHITECTURES, ROPE_FIELDS
from nemo_cdt.data.tokenizer import CONFIG, of_transformers_4, read_tokenizer
from nemo_cdt.utils.atomic_write import atomic_write
from nemo_cdt.utils.reading import blamed_on, read_json

TEMPLATE = "chat_template.jinja"
TOKENIZER_FILES = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    TEMPLATE,
    "chat_template.json",
    "generation_config.json",
]
"""What travels with the weights. An instruction-tuned model's further end tokens are in ``generation_config.json``."""

TEMPLATES = "additional_chat_templates"
"""A folder of templates with names, beside that of every chat."""

CONFIGS: dict[Family, type[PretrainedConfig]] = {
    Family.llama: LlamaConfig,
    Family.mistral: MistralConfig,
    Family.qwen2: Qwen2Config,
    Family.qwen3: Qwen3Config,
}


def read_weights(folder: Path) -> Weights:
    """All tensors, each mapped from its file when it is asked for.

    Raises:
        ValueError: where there are no safetensors, or damaged ones.
    """
    like: dict[str, Tensor] = {}
    files: dict[str, Path] = {}
    for file in weight_files(folder):
        with _opened(file) as tensors:
            like |= {name: tensors.get_tensor(name).to("meta") for name in tensors.keys()}  # noqa: SIM118
            files |= dict.fromkeys(tensors.keys(), file)

    def read(name: str) -> Tensor:
        with _opened(files[name]) as tensors:  # anew: as long as one is open, what was read of it counts as memory
            return tensors.get_tensor(name)

    return Weights(like, read)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    with blamed_on(file, "it is no whole safetensors file", whatever=True), safe_open(file, "pt") as tensors:
        yield tensors


def save(folder: Path, weights: Mapping[str, Tensor], model: Model) -> None:
    """Weights, in shards, and ``config.json``, into a folder that already holds the tokenizer, if there is one."""
    weights = Weights.of(weights)
    dtype = weights.like[EMBEDDING].dtype
    config_of(model, dtype, folder).save_pretrained(folder)
    # Without their storage, which views of one tensor share: for that they would all be put into one shard.
    shards = split_torch_state_dict_into_shards({n: torch.empty_like(w) for n, w in weights.like.items()})
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
        tokenizer = read_tokenizer(folder)
    found = {name: getattr(tokenizer, name) for name in names}
    return {name: token if token is not None and token < vocabulary else None for name, token in found.items()}


def has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").is_file()


def copy_tokenizer(source: Path, destination: Path) -> None:
    """The files of a tokenizer, in the words of transformers 4; templates with names go into its configuration.

    There NeMo, which copies files and no folders, keeps them.
    """
    destination.mkdir(exist_ok=True)
    named = {file.stem: file.read_text("utf-8") for file in sorted((source / TEMPLATES).glob("*.jinja"))}
    default = source / TEMPLATE
    for name in TOKENIZER_FILES:
        if not (source / name).is_file() or (named and name == TEMPLATE):
            continue
        said = read_json(source / name) if name.endswith(".json") else {}
        now = of_transformers_4(said) if name == CONFIG else said
        if name == CONFIG and named:
            templates = ({"default": default.read_text("utf-8")} if default.is_file() else {}) | named
            now = now | {"chat_template": [{"name": key, "template": text} for key, text in templates.items()]}
        if now == said:
            shutil.copyfile(source / name, destination / name)
        else:
            atomic_write(destination / name, json.dumps(now, indent=2, ensure_ascii=False) + "\n")
