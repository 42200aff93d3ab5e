"""From the ``model`` group of conf/ to Megatron-Bridge's provider of Megatron's model, and back to Hugging Face."""

from pathlib import Path
from typing import Any

import torch
from megatron.bridge import AutoBridge
from megatron.core.models.gpt import GPTModel
from torch import nn

from nemo_cdt.checkpoint.huggingface import config_of
from nemo_cdt.config import Config, Precision
from nemo_cdt.megatron.layers import layer_spec
from nemo_cdt.megatron.model import adopt
from nemo_cdt.megatron.rope import scaled, softmax_scale
from nemo_cdt.megatron.settings import of_model

DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp32: torch.float32}


def bridge_of(config: Config) -> AutoBridge:
    """Bridge's conversion for the model of ``init.hf``, or for one of this architecture with random weights."""
    dtype = DTYPES[config.trainer.precision]
    if config.init.hf:
        return AutoBridge.from_hf_pretrained(config.init.hf, torch_dtype=dtype)
    return AutoBridge.from_hf_config(config_of(config.model, dtype, Path(config.init.hf or ".")))


def provider_of(bridge: AutoBridge, config: Config, *, load: bool, on_gpu: bool) -> Any:
    """Bridge's provider of the model; ``load``: with the weights of ``init.hf``, where that is named."""
    provider = bridge.to_megatron_provider(load_weights=load and config.init.hf is not None)
    for name, value in _settings(config, on_gpu).items():
        setattr(provider, name, value)
    if not (on_gpu and _has_transformer_engine()):
        provider.transformer_layer_spec = layer_spec
    provider.register_pre_wrap_hook(lambda chunks: [_ours(chunk, config) for chunk in chunks])
    return provider


def _settings(config: Config, on_gpu: bool) -> dict[str, Any]:
    parallel, model, trainer = config.parallel, config.model, config.trainer
    plain = trainer.precision is Precision.fp32
    settings = {
        "seq_length": config.data.seq_length,
        "tensor_model_parallel_size": parallel.tensor,
        "pipeline_model_parallel_size": parallel.pipeline,
        "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline,
        "context_parallel_size": parallel.context,
        "sequence_parallel": parallel.sequence,
        "pipeline_dtype": DTYPES[trainer.precision],
        "params_dtype": DTYPES[trainer.precision],
        "bf16": not plain,
        # Bridge's own scaling is wrong where the original length is not 8,192: see :func:`_ours`.
        "position_embedding_type": "rope",
        "rope_scaling": False,
        "yarn_rotary_scaling_factor": None,
        "softmax_scale": model.rope and softmax_scale(model.head_size, model.rope),
        **of_model(config, on_gpu),
    }
    if not (on_gpu and _has_transformer_engine()):
        settings |= {"apply_rope_fusion": False, "persist_layer_norm": False}
    return settings


def _has_transformer_engine() -> bool:
    from megatron.core.extensions.transformer_engine import HAVE_TE

    return bool(HAVE_TE)


def _ours(chunk: nn.Module, config: Config) -> nn.Module:
    """The head at labelled positions, chunked MLPs, and RoPE as Hugging Face has it."""
    assert isinstance(chunk, GPTModel)
    adopt(chunk)
    if config.model.rope:
        rope = chunk.rotary_pos_emb
        rope.inv_freq = scaled(rope.inv_freq, config.model.rotary_base, config.model.rope)
    return chunk
