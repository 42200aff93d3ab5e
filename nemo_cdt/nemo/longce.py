"""LongCE as a Lightning callback: puts the weighing schedule in NeMo's training step, logs the weights."""

import logging
from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
from nemo.lightning.megatron_parallel import MegatronStep

from nemo_cdt.config import Objective
from nemo_cdt.megatron.record import Record
from nemo_cdt.megatron.windows import NAMES, LongCESchedule
from nemo_cdt.nemo.callback import wrapped

logger = logging.getLogger("nemo_cdt")


class LongCE(L.Callback):
    """Trains with LongCE's weights, on denoised embeddings where :class:`ContextDenoising` comes before it.

    ``loss`` stays the plain cross-entropy, comparable between objectives; what is trained on is ``weighted_loss``.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.record = Record(NAMES)
        self._told = False

    def on_megatron_step_start(self, step: MegatronStep) -> MegatronStep:
        return step if step.forward_only else wrapped(step, self._wrap)

    def _wrap(self, schedule: Callable) -> LongCESchedule:
        how = self.objective
        return LongCESchedule(schedule, window=how.window, internal=how.internal, gamma=how.gamma, record=self.record)

    def on_megatron_step_end(self, step: MegatronStep) -> None:
        if step.forward_only:
            return
        sums, window_time = self.record.take()
        shares: dict[str, Any] = {
            "weighted_loss": sums["weighted_loss"],
            "weight": sums["weight"],
            "capped_fraction": sums["capped"],
            "measured_fraction": sums["measured"],
        }
        for name, total in shares.items():
            step.pl_module.log(name, total / sums["tokens"], batch_size=1)
        step.pl_module.log("window_time", window_time, batch_size=1)
        if not (sums["measured"] or self._told):
            self._told = True
            logger.warning(
                "LongCE: no labelled token of this step lies behind objective.window=%d tokens of its document: it "
                "trains as plain cross-entropy",
                self.objective.window,
            )
