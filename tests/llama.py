"""Megatron's weights under Hugging Face's names: a second opinion, independent of nemo_cdt's converter."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from nemo_cdt.config import Model


def hugging_face(model: Model, vocab_size: int, weights: dict[str, np.ndarray]) -> PreTrainedModel:
    found = AutoModelForCausalLM.from_config(configuration(model, vocab_size)).float()
    found.load_state_dict({k: torch.tensor(v) for k, v in renamed(model, weights).items()}, strict=True)
    return found


def random_hugging_face(model: Model, vocab_size: int) -> PreTrainedModel:
    """With norms and biases that are not what they start with."""
    torch.manual_seed(0)
    found = AutoModelForCausalLM.from_config(configuration(model, vocab_size)).float()
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.2)
    return found


def loaded(folder: Path) -> PreTrainedModel:
    """What transformers makes of a folder, in fp32; it uses every weight and initialises none."""
    found, report = AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    return found


def configuration(model: Model, vocab_size: int) -> PretrainedConfig:
    rope = model.rope
    scaling = (
        rope
        and {
            "llama3": {
                "rope_type": "llama3",
                "factor": rope.factor,
                "low_freq_factor": rope.low_freq_factor,
                "high_freq_factor": rope.high_freq_factor,
                "original_max_position_embeddings": rope.original_max_position_embeddings,
            },
            "yarn": {
                "rope_type": "yarn",
                "factor": rope.factor,
                "original_max_position_embeddings": rope.original_max_position_embeddings,
            },
        }[str(rope.rope_type)]
    )
    fields = {
        "llama": {"head_dim": model.head_dim},
        "mistral": {"head_dim": model.head_dim, "sliding_window": model.sliding_window},
        "qwen2": {},
        "qwen3": {"head_dim": model.head_dim},
    }[str(model.family)]
    return AutoConfig.for_model(
        str(model.family),
        vocab_size=vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_query_groups,
        max_position_embeddings=model.max_positions,
        rope_theta=model.rotary_base,
        rms_norm_eps=model.norm_epsilon,
        tie_word_embeddings=model.tied_embeddings,
        rope_scaling=scaling,
        initializer_range=model.init_std,
        attn_implementation="eager",
        **fields,
    )


def renamed(model: Model, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    heads, groups, hidden = model.num_attention_heads, model.num_query_groups, model.hidden_size
    width = model.head_dim or hidden // heads
    out = {
        "model.embed_tokens.weight": weights["embedding.word_embeddings.weight"],
        "model.norm.weight": weights["decoder.final_layernorm.weight"],
        "lm_head.weight": weights.get("output_layer.weight", weights["embedding.word_embeddings.weight"]),
    }
    for i in range(model.num_layers):
        ours, theirs = f"decoder.layers.{i}.", f"model.layers.{i}."
        for kind in ("weight", "bias"):
            if (name := f"{ours}self_attention.linear_qkv.{kind}") in weights:
                qkv = weights[name].reshape(groups, heads // groups + 2, width, *weights[name].shape[1:])
                for part, rows in (("q", qkv[:, :-2]), ("k", qkv[:, -2]), ("v", qkv[:, -1])):
                    out[f"{theirs}self_attn.{part}_proj.{kind}"] = rows.reshape(-1, *weights[name].shape[1:])
        for part in ("q", "k"):
            if (name := f"{ours}self_attention.{part}_layernorm.weight") in weights:
                out[f"{theirs}self_attn.{part}_norm.weight"] = weights[name]
        gate, up = np.split(weights[ours + "mlp.linear_fc1.weight"], 2)
        out |= {
            theirs + "self_attn.o_proj.weight": weights[ours + "self_attention.linear_proj.weight"],
            theirs + "mlp.gate_proj.weight": gate,
            theirs + "mlp.up_proj.weight": up,
            theirs + "mlp.down_proj.weight": weights[ours + "mlp.linear_fc2.weight"],
            theirs + "input_layernorm.weight": weights[ours + "input_layernorm.weight"],
            theirs + "post_attention_layernorm.weight": weights[ours + "pre_mlp_layernorm.weight"],
        }
    return out
