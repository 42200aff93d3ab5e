"""LOGO as a Lightning callback: puts the preference loss in NeMo's training step, logs what it says."""

from collections.abc import Callable

import lightning.pytorch as L
from nemo.lightning.megatron_parallel import MegatronStep

from nemo_cdt.config import Objective
from nemo_cdt.logo import Preference
from nemo_cdt.megatron.preferences import NAMES, LogoSchedule
from nemo_cdt.megatron.record import Record
from nemo_cdt.nemo.callback import wrapped


class Logo(L.Callback):
    """Trains with LOGO's loss, ``preference_loss``; ``loss`` and ``val_loss`` are the chosen answers' cross-entropy."""

    def __init__(self, objective: Objective) -> None:
        self.how = Preference(beta=objective.preference_beta, margin=objective.margin, sft_weight=objective.sft_weight)
        self.record = Record(NAMES)

    def on_megatron_step_start(self, step: MegatronStep) -> MegatronStep:
        return step if step.forward_only else wrapped(step, self._wrap)

    def _wrap(self, schedule: Callable) -> LogoSchedule:
        return LogoSchedule(schedule, self.how, self.record)

    def on_megatron_step_end(self, step: MegatronStep) -> None:
        if step.forward_only:
            return
        sums, _ = self.record.take()
        for name in NAMES[1:]:
            step.pl_module.log(name, sums[name] / sums["preferences"], batch_size=1)
