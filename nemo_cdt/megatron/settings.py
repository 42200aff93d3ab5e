"""Megatron's settings that a run's configuration decides alike, whichever framework hands them over."""

from typing import Any

from nemo_cdt.config import Config, Precision
from nemo_cdt.megatron.recompute import SETTINGS

_INTERLEAVED = {"overlap_p2p_comm": True, "batch_p2p_comm": False}
"""With two stages a batch of sends pairs activations with gradients: Megatron asks for this, NeMo does not."""
_UNEVEN_ROWS = {"variable_seq_lengths": True, "moe_token_dispatcher_type": "alltoall"}
"""Pipeline stages tell each other how long a row is; Megatron then refuses its default of what no model here has."""
_NO_KERNELS = {
    "use_cpu_initialization": True,
    "deallocate_pipeline_outputs": False,  # gloo sends from the tensor's own memory, after Megatron has let go of it
    "masked_softmax_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "gradient_accumulation_fusion": False,
}


def of_model(config: Config, on_gpu: bool) -> dict[str, Any]:
    """Of Megatron's model, beside its architecture."""
    parallel = config.parallel
    return {
        "attention_dropout": config.model.attention_dropout,
        "hidden_dropout": config.model.hidden_dropout,
        "fp32_residual_connection": config.model.fp32_residual,
        "calculate_per_token_loss": True,  # Megatron's other normalisation divides by each rank's own label count
        "cross_entropy_loss_fusion": False,
        "cp_comm_type": str(parallel.context_comm),
        "mlp_chunks_for_prefill": config.trainer.mlp_chunks,  # for training too: see nemo_cdt/megatron/mlp.py
        **SETTINGS[config.trainer.recompute],
        **(_UNEVEN_ROWS if config.deals and parallel.pipeline > 1 else {}),
        **(_INTERLEAVED if parallel.virtual_pipeline else {}),
        **({} if on_gpu else _NO_KERNELS),
    }


def of_optimizer(config: Config) -> dict[str, Any]:
    """Of Megatron's optimizer."""
    optim = config.optim
    return {
        "optimizer": "adam",
        "lr": optim.lr,
        "min_lr": optim.min_lr,
        "weight_decay": optim.weight_decay,
        "adam_beta1": optim.beta1,
        "adam_beta2": optim.beta2,
        "adam_eps": optim.eps,
        "clip_grad": optim.clip_grad,
        "bf16": config.trainer.precision is Precision.bf16,
        "use_distributed_optimizer": True,
        "overlap_param_gather": config.parallel.overlap_param_gather,
    }
