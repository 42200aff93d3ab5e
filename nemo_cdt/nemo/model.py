"""From the ``model`` group of conf/ to a NeMo model."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron.core.models.gpt import GPTModel
from nemo.collections import llm
from nemo.collections.llm.gpt.model.llama import Llama3Config
from nemo.utils.import_utils import safe_import
from torch import Tensor

from nemo_cdt.config import FP8, Config, RopeScaling
from nemo_cdt.megatron.fp8 import unsupported
from nemo_cdt.megatron.layers import layer_spec
from nemo_cdt.megatron.microbatch import MicroBatch, take
from nemo_cdt.megatron.model import adopt
from nemo_cdt.megatron.rope import scaled, softmax_scale
from nemo_cdt.megatron.settings import of_model

_, HAVE_TRANSFORMER_ENGINE = safe_import("transformer_engine")

VOCABULARY_MULTIPLE = 128
"""Independent of the layout, unlike NeMo's padding, so that one checkpoint fits every tensor-parallel size up to it."""


@dataclass
class CDTConfig(Llama3Config):
    """NeMo's config of every family here: what they differ in are Megatron's options, except for these two.

    family: one of :class:`nemo_cdt.config.Family`, for an export; computes nothing.
    rope_scaling: :class:`nemo_cdt.config.RopeScaling` as a dict, which a checkpoint can record.
    """

    family: str = "llama"
    rope_scaling: dict[str, Any] | None = None
    window_size: Sequence[int] | None = None  # Megatron's pair; a list in a checkpoint

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window_size:
            self.window_size = tuple(self.window_size)
        if self.rope_scaling:
            self.softmax_scale = softmax_scale(self.kv_channels, RopeScaling(**self.rope_scaling))

    def configure_model(self, *arguments: Any, **named: Any) -> GPTModel:
        model = super().configure_model(*arguments, **named)
        if self.rope_scaling:
            rope = model.rotary_pos_emb
            rope.inv_freq = scaled(rope.inv_freq, self.rotary_base, RopeScaling(**self.rope_scaling))
        return model


class CDTModel(llm.GPTModel):
    """NeMo's GPT, fed with :class:`MicroBatch` in training, validation and detection alike."""

    def configure_model(self, vp_stage: int | None = None) -> None:
        built = hasattr(self, "module")
        super().configure_model(vp_stage)
        if not built:
            adopt(self.module)

    def data_step(self, dataloader_iter: Iterator) -> MicroBatch:
        return take(dataloader_iter)

    def forward_step(self, batch: MicroBatch) -> Tensor:
        """The cross-entropy of every position, [b, s]; between pipeline stages the hidden states."""
        return self(
            batch["tokens"],
            batch["position_ids"],
            attention_mask=None,  # causal within documents, in Transformer Engine's attention as in ours
            labels=batch.labels(),
            packed_seq_params=batch.packed(),
        )


def padded(vocabulary: int) -> int:
    """The vocabulary size of a model that starts from random weights."""
    return -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def nemo_config(config: Config, *, vocab_size: int, on_gpu: bool) -> CDTConfig:
    """NeMo's config of the model. Everything goes through the constructor: a checkpoint records its arguments only.

    Raises:
        ValueError: for what needs Transformer Engine where there is none.
    """
    model, offloaded, fp8 = config.model, config.trainer.offload_activations, config.trainer.fp8
    if fp8 is not FP8.none and (reason := unsupported()):
        raise ValueError(f"trainer.fp8={fp8}: {reason}; set trainer.fp8=none")
    if not (on_gpu and HAVE_TRANSFORMER_ENGINE):
        for name, value in (("trainer.offload_activations", offloaded), ("optim.offload", config.optim.offload)):
            if value:
                raise ValueError(f"{name}={value} needs a GPU and Transformer Engine: set {name}=0")
    arguments = {
        "family": str(model.family),
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "kv_channels": model.head_dim,
        "add_qkv_bias": model.qkv_bias,
        "qk_layernorm": model.qk_norm,
        "window_size": model.sliding_window and [model.sliding_window - 1, 0],  # how far back and ahead
        "rotary_base": model.rotary_base,
        "rope_scaling": model.rope and _plain(model.rope),
        "layernorm_epsilon": model.norm_epsilon,
        "init_method_std": model.init_std,
        "share_embeddings_and_output_weights": model.tied_embeddings,
        "seq_length": model.max_positions,  # what a checkpoint says of its positions; a row's length is the data's
        "vocab_size": vocab_size,
        **of_model(config, on_gpu),
        **({"cpu_offloading": True, "cpu_offloading_num_layers": offloaded} if offloaded else {}),
        **(_FP8 if fp8 is not FP8.none else {}),
    }
    if not (on_gpu and HAVE_TRANSFORMER_ENGINE):
        arguments |= {"transformer_layer_spec": layer_spec, "apply_rope_fusion": False, "persist_layer_norm": False}
    return CDTConfig(**arguments)


def _plain(scaling: RopeScaling) -> dict[str, Any]:
    return asdict(scaling) | {"rope_type": str(scaling.rope_type)}


_FP8 = {"disable_parameter_transpose_cache": True}
"""Megatron would keep the weights in 8 bits, beside them and as they were in the first step."""
