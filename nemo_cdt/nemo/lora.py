"""NeMo's LoRA as a run needs it: without Transformer Engine too, with recomputation, and resumed exactly."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from nemo.collections.llm.peft.lora import LoRA, LoRALinear
from nemo.collections.llm.peft.utils import ParallelLinearAdapter
from nemo.lightning.pytorch.callbacks.peft import WrappedAdapterIO
from torch import Tensor, nn

from nemo_cdt.checkpoint.unpickling import weights_only
from nemo_cdt.config import Lora
from nemo_cdt.megatron.embedding import find_embedding
from nemo_cdt.nemo.saving import keep_only_progress


class Adapters(LoRA):
    """Freezes the model and puts an adapter beside each target; a callback, and the model's ``model_transform``.

    NeMo loads the weights, then adapts the model, and only then hands what trains to DDP and the optimizer.
    """

    def __call__(self, model: nn.Module) -> nn.Module:
        model = super().__call__(model)
        embedding = find_embedding([model])
        if embedding is not None and embedding.config.recompute_granularity == "full":
            embedding.register_forward_hook(_wanting_a_gradient)
        return model

    def transform(self, m: nn.Module, name: str | None = None, prefix: str | None = None) -> nn.Module:
        """NeMo's, which needs Transformer Engine to be installed, and the same for Megatron's own linear layers.

        NeMo calls it by the names of its parameters.
        """
        matched = self.match(m, name, prefix)
        if matched is None:
            return m
        if not isinstance(m, (ColumnParallelLinear, RowParallelLinear)):
            return super().transform(m, name, prefix)
        adapter = ParallelLinearAdapter(
            m.input_size,
            m.output_size,
            self.dim,
            base_linear_name=matched[1],
            activation="identity",
            column_init_method=self.lora_A_init_method,
            row_init_method=self.lora_B_init_method,
            input_is_parallel=isinstance(m, RowParallelLinear),
            dropout=self.dropout,
            dropout_position=self.dropout_position,
            model_parallel_config=m.config,
            alpha=self.alpha,
            disable_sequence_parallel_comm=not m.config.sequence_parallel,
        )
        return LoRALinear(m, adapter)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """NeMo adapts the model when an epoch starts: new adapters would draw from restored random generators."""
        self._maybe_apply_transform(trainer)
        if trainer.global_step == 0:
            count = float(_trainable(pl_module))
            for metrics in trainer.loggers:
                metrics.log_metrics({"trainable_parameters": count}, step=0)

    def get_wrappped_io(self) -> partial["AdapterIO"]:
        return partial(AdapterIO, peft=self)


class AdapterIO(WrappedAdapterIO):
    """Saves what trains, and the path of the checkpoint that it adapts."""

    model_ckpt_path: Path | None = None

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        """NeMo loads twice when it resumes: the base, then the adapters, with the base's path as it was then."""
        base = self.model_ckpt_path
        with weights_only():
            checkpoint = super().load_checkpoint(path, *arguments, **options)
        self.model_ckpt_path = base or self.model_ckpt_path
        keep_only_progress(checkpoint)
        return checkpoint


def adapters(lora: Lora) -> Adapters | None:
    """None where all weights train."""
    if lora.rank == 0:
        return None
    targets = [str(target) for target in lora.targets]
    return Adapters(target_modules=targets, dim=lora.rank, alpha=lora.alpha, dropout=lora.dropout)


def _wanting_a_gradient(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
    """Where its input wants no gradient, a layer that Megatron recomputes has no backward, and no adapter trains."""
    return output.requires_grad_() if torch.is_grad_enabled() else None


def _trainable(model: L.LightningModule) -> int:
    """Of the whole model: every adapter is split over the tensor-parallel ranks."""
    count = torch.tensor(sum(p.numel() for p in model.parameters() if p.requires_grad), device=model.device)
    torch.distributed.all_reduce(count, group=parallel_state.get_model_parallel_group())
    return int(count)
