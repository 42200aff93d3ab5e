"""The model that a NeMo checkpoint's ``context/`` describes, read without NeMo or torch."""

from pathlib import Path
from typing import Any

from nemo_cdt.config.architecture import require_possible
from nemo_cdt.config.schema import Family, Model, RopeScaling, RopeType
from nemo_cdt.utils.reading import FileError, blamed_on, entry, read_yaml

REQUIRED = {
    "normalization": "RMSNorm",
    "layernorm_zero_centered_gamma": False,
    "gated_linear_unit": True,
    "activation_func": {"_target_": "torch.nn.functional.silu", "_call_": False},
    "add_bias_linear": False,
    "multi_latent_attention": False,
    "num_moe_experts": None,
    "window_attn_skip_freq": None,
    "softmax_scale": None,
    "softmax_type": "vanilla",
    "position_embedding_type": "rope",
    "rotary_percent": 1.0,
    "rotary_interleaved": False,
    "seq_len_interpolation_factor": None,
}
"""What Hugging Face's families take for granted, as NeMo's config says it."""


def read_model(checkpoint: Path) -> Model:
    """The architecture, without a vocabulary size: that is the saved embedding's.

    Raises:
        ValueError: for what is no NeMo checkpoint, or one of a model that is of no :class:`Family`.
    """
    config = read_context(checkpoint)["config"]
    if missing := [name for name in ("num_attention_heads", "rotary_base") if name not in config]:
        raise ValueError(f"{checkpoint} holds none of {', '.join(Family)}: its config has no {missing[0]}")
    wrong = [name for name, value in REQUIRED.items() if config.get(name, value) != value]
    wrong += [] if _is_causal(config.get("window_size")) else ["window_size"]
    if wrong:
        raise ValueError(f"{checkpoint} holds none of {', '.join(Family)}: its {wrong[0]} is {config[wrong[0]]}")
    with blamed_on(checkpoint / "context/model.yaml"):
        model = _model(checkpoint, config)
        require_possible(model)
    return model


def _model(checkpoint: Path, config: dict[str, Any]) -> Model:
    return Model(
        name=checkpoint.resolve().name,
        family=_family(config),
        num_layers=config["num_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["ffn_hidden_size"],
        num_attention_heads=config["num_attention_heads"],
        num_query_groups=config.get("num_query_groups") or config["num_attention_heads"],
        head_dim=config.get("kv_channels"),
        qkv_bias=config.get("add_qkv_bias", False),
        qk_norm=config.get("qk_layernorm", False),
        sliding_window=config["window_size"][0] + 1 if config.get("window_size") else None,
        attention_dropout=config["attention_dropout"],
        hidden_dropout=config["hidden_dropout"],
        vocab_size=None,
        max_positions=config["seq_length"],
        rotary_base=float(config["rotary_base"]),
        rope_scaling=_rope_scaling(config),
        norm_epsilon=config["layernorm_epsilon"],
        init_std=config["init_method_std"],
        tied_embeddings=config["share_embeddings_and_output_weights"],
        fp32_residual=config["fp32_residual_connection"],
    )


def read_context(checkpoint: Path) -> dict[str, Any]:
    """The arguments that NeMo's model was made with, its ``config`` among them, as plain values."""
    path = checkpoint / "context/model.yaml"
    try:
        found = read_yaml(path)
        if not isinstance(found, dict):
            raise FileError(f"{path} holds no keys")
        return found | {"config": entry(found, "config", dict, path)}
    except FileError as error:
        raise FileError(
            f"{checkpoint} has no readable context/model.yaml, which says what model it is: {error}"
        ) from error


def _is_causal(window: list[int] | None) -> bool:
    return window is None or (window[0] >= 0 and window[1] == 0)


def _family(config: dict[str, Any]) -> Family:
    """That of our own config; NeMo's configs of these families differ in what they compute."""
    if "family" in config:
        return Family(config["family"])
    if config.get("qk_layernorm") or config.get("add_qkv_bias"):
        return Family.qwen3 if config.get("qk_layernorm") else Family.qwen2
    return Family.mistral if config.get("window_size") else Family.llama


def _rope_scaling(config: dict[str, Any]) -> RopeScaling:
    """As our own config has it, or NeMo's of Llama 3.1."""
    if scaling := config.get("rope_scaling"):
        return RopeScaling(**scaling)
    if "scale_factor" not in config:
        return RopeScaling(rope_type=RopeType.none)
    return RopeScaling(
        factor=config["scale_factor"],
        low_freq_factor=config["low_freq_factor"],
        high_freq_factor=config["high_freq_factor"],
        original_max_position_embeddings=config["old_context_len"],
    )
