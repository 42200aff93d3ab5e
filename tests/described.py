"""A Hugging Face folder's ``config.json``, written by hand: without transformers, weights or code of ours."""

import json
from pathlib import Path
from typing import Any

from nemo_cdt.config import Model

ARCHITECTURES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def described(model: Model, **more: Any) -> dict[str, Any]:
    rope = model.rope
    fields = ("factor", "original_max_position_embeddings")
    fields += ("low_freq_factor", "high_freq_factor") if rope and rope.rope_type == "llama3" else ()
    found = {
        "architectures": [f"{ARCHITECTURES[model.family]}ForCausalLM"],
        "model_type": str(model.family),
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "head_dim": model.head_size,
        "vocab_size": model.vocab_size or 263,
        "max_position_embeddings": model.max_positions,
        "rope_theta": model.rotary_base,
        "rope_scaling": rope and {"rope_type": str(rope.rope_type)} | {name: getattr(rope, name) for name in fields},
        "rms_norm_eps": model.norm_epsilon,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tied_embeddings,
    }
    return found | ({"sliding_window": model.sliding_window} if model.family == "mistral" else {}) | more


def write_described(folder: Path, model: Model, **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(described(model, **more)))
