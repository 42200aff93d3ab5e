"""What a run does at each step beside training: data, learning rate, figures, validation, export."""

import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.core import parallel_state
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from nemo_cdt import metrics_file
from nemo_cdt.bridge.data import RowStreams, training, validation
from nemo_cdt.bridge.learning_rate import learning_rate
from nemo_cdt.config import FP8, Config, Recompute
from nemo_cdt.data.rows import Rows
from nemo_cdt.megatron.engine import Engine
from nemo_cdt.megatron.fed import Fed
from nemo_cdt.megatron.groups import Groups
from nemo_cdt.megatron.microbatch import take
from nemo_cdt.megatron.rows import AnyRows
from nemo_cdt.megatron.schedule import step_by_step
from nemo_cdt.objectives import Objective
from nemo_cdt.utils.progress import ProgressLines
from nemo_cdt.utils.user_errors import TrainingFailedError

LOSS = "loss"


class Run(Callback):
    """Of one training. Bridge calls it at each step; :meth:`forward_step` and :meth:`wrap` are what it trains with.

    Args:
        config: of the run.
        objective: what is trained.
        rows: to train on, and to validate on.
        streams: what Bridge reads.
        recompute: what detection's backward computes again.
    """

    def __init__(
        self,
        config: Config,
        objective: Objective,
        rows: tuple[AnyRows, Rows],
        streams: RowStreams,
        recompute: Recompute | None,
        observe: Callable[[Any], None] | None = None,
    ) -> None:
        self.config = config
        self.objective = objective
        self.rows, self.held_out = rows
        self.streams = streams
        self.recompute = recompute
        self.observe = observe
        self.metrics: dict[str, float] = {}
        self.steps = 0
        self._file = Path(config.output, "metrics.jsonl")
        self._lines: ProgressLines | None = None
        self._board: SummaryWriter | None = None
        self._fed = Fed()
        self._chunks = 1

    def forward_step(self, data_iterator: Iterator, model: nn.Module) -> tuple[Tensor, Callable]:
        """Megatron's, over a micro-batch of ours: in training, detection and validation alike."""
        batch = take(data_iterator)
        if torch.is_grad_enabled():
            self._fed.add(batch, self._chunks)
        output = model(
            batch["tokens"], batch["position_ids"], None, labels=batch.labels(), packed_seq_params=batch.packed()
        )

        def loss(loss_BS: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            total, count = (loss_BS * batch["loss_mask"]).sum(), batch["loss_mask"].sum()
            return total, count.to(torch.int), {LOSS: torch.stack([total.detach(), count])}

        return output, loss

    def wrap(self, schedule: Callable[..., list]) -> Callable[..., list]:
        """Megatron's schedule as the objective trains with it. Bridge asks before it says that training starts."""

        @functools.cache
        def wrapped() -> Callable[..., list]:
            inner = self.objective.wrap(schedule)
            return step_by_step(inner) if self.config.deals else inner

        return lambda **call: wrapped()(**call)

    def on_train_start(self, context: CallbackContext) -> None:
        self.steps = context.state.train_state.step
        self._chunks = len(context.model)
        self._optimizer = context.optimizer
        self.streams.train.begin(training(self.rows, self.config, self.steps))
        settings = context.state.cfg.model
        self.objective.start(
            Engine(
                take=take,
                groups=Groups.of_megatron(settings.sequence_parallel),
                pipelined=parallel_state.get_pipeline_model_parallel_world_size() > 1,
                hidden_size=settings.hidden_size,
                learning_rate=self._rate,
                recompute=self.recompute,
                fp8=self.config.trainer.fp8 is FP8.detection,
                observe=self.observe,
            )
        )
        if torch.distributed.get_rank() == 0:
            metrics_file.drop_after(self._file, self.steps)
            self._lines = ProgressLines(self.steps, self.config.trainer.max_steps)
            if self.config.logger.tensorboard.use:
                self._board = SummaryWriter(str(self._file.with_name("tensorboard")), purge_step=self.steps + 1)

    def _rate(self) -> float:
        return learning_rate(self.config.optim, self.config.trainer.max_steps, self.steps)

    def on_train_step_start(self, context: CallbackContext) -> None:
        """Sets the rate by itself: Bridge's schedules warm up and fall otherwise."""
        for group in context.optimizer.param_groups:
            group["lr"] = self._rate()
        self._fed = Fed()
        self._start = time.perf_counter()

    def on_train_step_end(self, context: CallbackContext) -> None:
        rate = self._rate()
        self.steps += 1
        found = torch.tensor(
            [float(context.loss_dict[LOSS]) if context.loss_dict else -math.inf], device=torch.cuda.current_device()
        )
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)  # the last stage has it
        seconds = time.perf_counter() - self._start
        tokens, positions = map(float, self._fed.of_all_ranks())
        self.metrics = {
            "loss": float(found),
            "lr": rate,
            "grad_norm": float(context.grad_norm),
            "step_time": seconds,
            "padding_fraction": 1 - tokens / positions,
            "tokens_per_second": tokens / seconds,
            **self.objective.metrics(),
        }
        for said, value in (("the loss", self.metrics["loss"]), ("the gradient's norm", self.metrics["grad_norm"])):
            if not math.isfinite(value):
                raise TrainingFailedError(f"step {self.steps}: {said} is {value}")
        if self._lines is not None:
            self._log(self.metrics)
            self._lines.step(self.steps, self.metrics | {"reduced_train_loss": self.metrics["loss"]})

    def on_eval_start(self, context: CallbackContext) -> None:
        self.streams.held_out.begin(validation(self.held_out, self.config))

    def on_eval_end(self, context: CallbackContext) -> None:
        loss = context.total_loss_dict[LOSS] if context.total_loss_dict else None
        found = torch.tensor([-math.inf if loss is None else float(loss)], device=torch.cuda.current_device())
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
        figures = {"val_loss": float(found), "val_perplexity": math.exp(float(found))}
        if self._lines is not None:
            self._log(figures)
            self._lines.validated(self.steps, figures)

    def on_train_end(self, context: CallbackContext) -> None:
        context.state.train_state.do_valid = False  # the last step has been validated, where it was to be
        if self._lines is not None:
            self._lines.close()
        if self._board is not None:
            self._board.close()

    def _log(self, figures: dict[str, float]) -> None:
        metrics_file.append(self._file, self.steps, figures)
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, self.steps)
            self._board.flush()  # a run may end at any time
