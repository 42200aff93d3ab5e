"""An objective as a Lightning callback: its schedule in NeMo's training step, and what a step logs, whatever it is."""

import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import lightning.pytorch as L
import torch
from megatron.core import parallel_state
from nemo.lightning.megatron_parallel import MegatronStep

from nemo_cdt.config import Recompute
from nemo_cdt.megatron.engine import Engine
from nemo_cdt.megatron.fed import Fed
from nemo_cdt.megatron.groups import Groups
from nemo_cdt.megatron.microbatch import MicroBatch, take
from nemo_cdt.megatron.schedule import chunks_of, step_by_step
from nemo_cdt.objectives import Objective

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


class ObjectiveCallback(L.Callback):
    """Trains with an objective: its schedule runs in NeMo's training step, and what a step did is logged.

    Args:
        objective: what is trained.
        observer: is shown what it detects, where it detects.
        recompute: what detection's backward computes again; None is what training's does.
        fp8: whether detection is in FP8.
        whole_steps: whether the data loader yields all of a step's micro-batches at once.
    """

    def __init__(
        self,
        objective: Objective,
        observer: Callable[[Any], None] | None = None,
        recompute: Recompute | None = None,
        fp8: bool = False,
        whole_steps: bool = False,
    ) -> None:
        self.objective = objective
        self.observer = observer
        self.recompute = recompute
        self.fp8 = fp8
        self.whole_steps = whole_steps

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        lent = Engine(
            take=take,
            groups=Groups.of_megatron(pl_module.config.sequence_parallel),
            pipelined=parallel_state.get_pipeline_model_parallel_world_size() > 1,
            hidden_size=pl_module.config.hidden_size,
            learning_rate=lambda: trainer.optimizers[0].param_groups[0]["lr"],
            recompute=self.recompute,
            fp8=self.fp8,
            observe=self.observer,
        )
        self.objective.start(lent)

    def on_megatron_step_start(self, step: MegatronStep) -> MegatronStep:
        if step.forward_only:
            return step
        step = wrapped(step, self.objective.wrap)
        return wrapped(step, step_by_step) if self.whole_steps else step

    def on_megatron_step_end(self, step: MegatronStep) -> None:
        if step.forward_only:
            return
        on_bar = {metric.name for metric in self.objective.METRICS if metric.on_bar}
        for name, value in self.objective.metrics().items():
            step.pl_module.log(name, value, batch_size=1, prog_bar=name in on_bar)


class StepMetrics(L.Callback):
    """Step time, tokens a second, padding and peak memory of every training step, whatever the objective.

    Says once where much is padding that packing would fill.
    """

    MUCH = 0.25

    def __init__(self, *, packed: bool, before: Sequence[str] = ()) -> None:
        """``before``: the metrics in which a step's passes before training's log their seconds."""
        self.before = before
        self._told = packed
        self._start = 0.0
        self._fed = Fed()

    def on_train_batch_start(self, *_: Any) -> None:
        self._start = time.perf_counter()
        self._fed = Fed()

    def on_megatron_microbatch_start(self, step: MegatronStep, batch: MicroBatch) -> None:
        """All passes of a step come here, and validation's."""
        if not step.forward_only:
            self._fed.add(batch, len(chunks_of(step.model)))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step_time = time.perf_counter() - self._start
        pl_module.log("steps", float(trainer.global_step), batch_size=1)  # done by now: what a checkpoint is called by
        pl_module.log("step_time", step_time, prog_bar=True, batch_size=1)
        tokens, positions = self._fed.of_all_ranks()
        pl_module.log("padding_fraction", 1 - tokens / positions, batch_size=1)
        pl_module.log("tokens_per_second", tokens / step_time, prog_bar=True, batch_size=1)
        if not self._told:
            self._tell(float(trainer.callback_metrics["padding_fraction"]))
        before = [trainer.callback_metrics[name] for name in self.before]
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
