"""Megatron's Llama weights under Hugging Face's names: a second opinion, independent of nemo_cdt's converter."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nemo_cdt.config import Model


def hugging_face(model: Model, vocab_size: int, weights: dict[str, np.ndarray]) -> LlamaForCausalLM:
    llama = LlamaForCausalLM(configuration(model, vocab_size)).float()
    llama.load_state_dict({k: torch.tensor(v) for k, v in renamed(model, weights).items()}, strict=True)
    return llama


def random_hugging_face(model: Model, vocab_size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(configuration(model, vocab_size)).float()


def configuration(model: Model, vocab_size: int) -> LlamaConfig:
    rope = model.rope_scaling
    return LlamaConfig(
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
        rope_scaling=rope
        and {
            "rope_type": "llama3",
            "factor": rope.factor,
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_position_embeddings,
        },
        initializer_range=model.init_std,
        attn_implementation="eager",
    )


def renamed(model: Model, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    heads, groups, hidden = model.num_attention_heads, model.num_query_groups, model.hidden_size
    width = hidden // heads
    out = {
        "model.embed_tokens.weight": weights["embedding.word_embeddings.weight"],
        "model.norm.weight": weights["decoder.final_layernorm.weight"],
        "lm_head.weight": weights.get("output_layer.weight", weights["embedding.word_embeddings.weight"]),
    }
    for i in range(model.num_layers):
        ours, theirs = f"decoder.layers.{i}.", f"model.layers.{i}."
        qkv = weights[ours + "self_attention.linear_qkv.weight"].reshape(groups, heads // groups + 2, width, hidden)
        gate, up = np.split(weights[ours + "mlp.linear_fc1.weight"], 2)
        out |= {
            theirs + "self_attn.q_proj.weight": qkv[:, :-2].reshape(-1, hidden),
            theirs + "self_attn.k_proj.weight": qkv[:, -2].reshape(-1, hidden),
            theirs + "self_attn.v_proj.weight": qkv[:, -1].reshape(-1, hidden),
            theirs + "self_attn.o_proj.weight": weights[ours + "self_attention.linear_proj.weight"],
            theirs + "mlp.gate_proj.weight": gate,
            theirs + "mlp.up_proj.weight": up,
            theirs + "mlp.down_proj.weight": weights[ours + "mlp.linear_fc2.weight"],
            theirs + "input_layernorm.weight": weights[ours + "input_layernorm.weight"],
            theirs + "post_attention_layernorm.weight": weights[ours + "pre_mlp_layernorm.weight"],
        }
    return out
