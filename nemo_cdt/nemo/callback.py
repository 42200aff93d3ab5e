"""Context denoising as a Lightning callback: puts the two-pass schedule in NeMo's training step, logs what it did."""

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import lightning.pytorch as L
import torch
from megatron.core import parallel_state
from nemo.lightning.megatron_parallel import MegatronStep

from nemo_cdt.config import Objective, Recompute
from nemo_cdt.denoise import Denoising
from nemo_cdt.megatron.detection import Detection, Detector, Groups
from nemo_cdt.megatron.microbatch import MicroBatch, take
from nemo_cdt.megatron.schedule import TwoPassSchedule

logger = logging.getLogger("nemo_cdt")


@dataclass
class WrappedStep(MegatronStep):
    """A MegatronStep whose schedule is wrapped. A subclass, since NeMo's data sampler copies the step after us."""

    wrap: Callable[[Callable], Callable] = field(kw_only=True)

    @functools.cached_property
    def forward_backward_func(self) -> Callable:
        return self.wrap(super().forward_backward_func)


def wrapped(step: MegatronStep, wrap: Callable[[Callable], Callable]) -> WrappedStep:
    """``step`` with its schedule in ``wrap``, outside of what it is wrapped in already."""
    inner = step.wrap if isinstance(step, WrappedStep) else None
    return WrappedStep(
        **{f.name: getattr(step, f.name) for f in fields(MegatronStep)},
        wrap=(lambda schedule: wrap(inner(schedule))) if inner else wrap,
    )


class ContextDenoising(L.Callback):
    """Trains with CDT: each training step detects noise and trains on the denoised embeddings; validation is plain.

    recompute: what detection's backward computes again; None is what training's does.
    fp8: whether detection is in FP8.
    """

    def __init__(
        self,
        objective: Objective,
        observer: Callable[[Detection], None] | None = None,
        recompute: Recompute | None = None,
        fp8: bool = False,
    ) -> None:
        self.objective = objective
        self.observer = observer
        self.recompute = recompute
        self.fp8 = fp8
        self.detector: Detector  # of the layout, so not before training starts
        self._told: set[str] = set()

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        objective = self.objective
        self.detector = Detector(
            Denoising(normalization=objective.normalization, epsilon=objective.epsilon, rho=objective.rho),
            objective.threshold_scope,
            lambda: objective.beta * (_learning_rate(trainer) if objective.lr == "scheduled" else objective.lr),
            Groups.of_megatron(pl_module.config.sequence_parallel),
            self.observer,
        )

    def on_megatron_step_start(self, step: MegatronStep) -> MegatronStep:
        if step.forward_only:
            return step
        return wrapped(step, self._wrap)

    def _wrap(self, schedule: Callable) -> TwoPassSchedule:
        pipelined = parallel_state.get_pipeline_model_parallel_world_size() > 1
        return TwoPassSchedule(
            schedule, self.detector, take, pipelined=pipelined, recompute=self.recompute, fp8=self.fp8
        )

    def on_megatron_step_end(self, step: MegatronStep) -> None:
        if step.forward_only:
            return
        sums, detection_time = self.detector.take_sums()
        metrics = {
            "detection_loss": _ratio(sums["detection_loss"], sums["documents"]),
            "noise_fraction": _ratio(sums["noise"], sums["tokens"]),
            "threshold": _ratio(sums["threshold"], sums["segments"]),
            "delta_to_embedding": _ratio(sums["relative_shift"], sums["noise"]),
            "changed_fraction": _ratio(sums["changed"], sums["tokens"] * step.pl_module.config.hidden_size),
            "detection_time": detection_time,
        }
        self._warn(metrics, sums)
        for name, value in metrics.items():
            step.pl_module.log(name, value, batch_size=1, prog_bar=name == "noise_fraction")

    def _warn(self, metrics: dict[str, float], sums: dict[str, float]) -> None:
        if sums["silent"]:
            self._once(
                "documents whose embedding gradient is zero everywhere: they have no noise and are trained on as is"
            )
        if metrics["noise_fraction"] == 0:
            self._once("no token is noise in this step: it trains as plain cross-entropy")
        elif metrics["changed_fraction"] == 0 and metrics["delta_to_embedding"] > 0:
            self._once(
                "denoising changes no embedding element at this precision: training equals plain cross-entropy. Set "
                "model.fp32_residual=true, objective.normalization=relative, or a larger objective.beta"
            )

    def _once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            logger.warning("CDT: %s", message)


class StepMetrics(L.Callback):
    """Step time, tokens a second, padding and peak memory of every training step, whatever the objective.

    Says once where much is padding that packing would fill.
    """

    MUCH = 0.25

    def __init__(self, tokens_per_step: int, *, packed: bool) -> None:
        self.tokens_per_step = tokens_per_step
        self._told = packed
        self._start = 0.0
        self._padding: torch.Tensor | int = 0  # on the device
        self._positions = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self._start = time.perf_counter()
        self._padding, self._positions = 0, 0

    def on_megatron_microbatch_start(self, step: MegatronStep, batch: MicroBatch) -> None:
        """Both passes of CDT come here, which the share of padding does not notice, and LongCE's windows."""
        if not step.forward_only and "documents" in batch:
            self._padding += (batch["documents"] < 0).sum()
            self._positions += batch["documents"].numel()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step_time = time.perf_counter() - self._start
        pl_module.log("steps", float(trainer.global_step), batch_size=1)  # done by now: what a checkpoint is called by
        pl_module.log("step_time", step_time, prog_bar=True, batch_size=1)
        pl_module.log("tokens_per_second", self.tokens_per_step / step_time, prog_bar=True, batch_size=1)
        pl_module.log("padding_fraction", self._padding / self._positions, batch_size=1, sync_dist=True)
        if not self._told:
            self._tell(float(trainer.callback_metrics["padding_fraction"]))
        before = [
            trainer.callback_metrics[k] for k in ("detection_time", "window_time") if k in trainer.callback_metrics
        ]
        if before:
            pl_module.log("training_time", step_time - float(sum(before)), batch_size=1)
        if torch.cuda.is_available():
            pl_module.log("peak_memory_gib", torch.cuda.max_memory_allocated() / 2**30, batch_size=1)

    def _tell(self, padding: float) -> None:
        self._told = True
        if padding > self.MUCH:
            logger.warning(
                "%.0f %% of the first step is padding: data.pack=true fills rows with several documents", 100 * padding
            )


class Truncation(L.Callback):
    """Says, when training ends, what ``data.truncate`` cut off: on the console and in a row of the metrics."""

    def on_train_end(self, trainer: Any, pl_module: L.LightningModule) -> None:
        cut = torch.tensor(trainer.datamodule.truncated, device=pl_module.device)
        torch.distributed.all_reduce(cut, group=parallel_state.get_data_parallel_group())
        documents, tokens = cut.tolist()
        if documents:
            logger.warning(
                "data.truncate=true cut documents that are too long %d times, %d tokens in all", documents, tokens
            )
            for metrics in trainer.loggers:
                metrics.log_metrics(
                    {"truncated_documents": documents, "truncated_tokens": tokens}, step=trainer.global_step - 1
                )


def _learning_rate(trainer: L.Trainer) -> float:
    return trainer.optimizers[0].param_groups[0]["lr"]


def _ratio(total: float, count: float) -> float:
    return total / count if count else 0.0
