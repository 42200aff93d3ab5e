"""LOGO behind the seam of :mod:`nemo_cdt.objectives.base`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nemo_cdt.objectives.base import Metric, Objective, Schedule, Settings

if TYPE_CHECKING:
    from nemo_cdt.megatron.engine import Engine
    from nemo_cdt.megatron.sums import StepSums


@dataclass(kw_only=True)
class LOGOSettings(Settings):
    MAY_BE_ZERO = frozenset({"margin", "sft_weight"})

    name: str = "logo"
    preference_beta: float = 10.0
    """The factor inside LOGO's log-sigmoid; it has nothing to do with objective.beta."""
    margin: float = 0.3
    """The mean log-probability by which the chosen answer must lead; it is SimPO's gamma / beta."""
    sft_weight: float = 0.1
    """The weight of the chosen answer's own mean cross-entropy."""


class LOGO(Objective):
    """Trains on ``preference_loss``; ``loss`` and ``val_loss`` are the chosen answers' cross-entropy."""

    label = "LOGO"
    about = (
        "LOGO trains on preferences: of answers to the same prompt the chosen one is to be likelier than the rejected "
        "ones, by a margin."
    )
    settings_class: ClassVar[type[Settings]] = LOGOSettings
    preferences = True
    packs = True
    fp8 = False
    METRICS: ClassVar[tuple[Metric, ...]] = (
        Metric(
            name="preference_loss",
            title="preference loss",
            unit="nats",
            explanation="what is trained on; loss is the chosen answers' cross-entropy",
            best="lowest",
        ),
        Metric(
            name="advantage",
            title="chosen over rejected, mean log-probability",
            unit="nats",
            explanation="the chosen answer's mean log-probability less the mean of the rejected ones'",
        ),
        Metric(
            name="preferred",
            title="preferences that hold, fraction",
            unit="fraction",
            explanation="the share of preferences whose advantage is above 0",
        ),
    )

    def __init__(self, settings: LOGOSettings) -> None:
        super().__init__(settings)
        self.sums: StepSums

    def describe(self) -> list[str]:
        how = self.settings
        return [f"beta {how.preference_beta:g}, margin {how.margin:g}, chosen answer's loss times {how.sft_weight:g}"]

    def start(self, engine: Engine) -> None:
        from nemo_cdt.megatron.sums import StepSums
        from nemo_cdt.objectives.logo.schedule import NAMES

        super().start(engine)
        self.sums = StepSums(NAMES)

    def wrap(self, schedule: Schedule) -> Schedule:
        from nemo_cdt.objectives.logo.preference import Preference
        from nemo_cdt.objectives.logo.schedule import LogoSchedule

        how = self.settings
        wanted = Preference(beta=how.preference_beta, margin=how.margin, sft_weight=how.sft_weight)
        return LogoSchedule(schedule, wanted, self.sums)

    def metrics(self) -> dict[str, float]:
        sums, _ = self.sums.take()
        return {metric.name: sums[metric.name] / sums["preferences"] for metric in self.METRICS}
