"""LongCE behind the seam of :mod:`nemo_cdt.objectives.base`, alone and with CDT."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nemo_cdt.objectives.base import Metric, Objective, Pass, Schedule, Settings
from nemo_cdt.objectives.cdt import CDT, CDTSettings

if TYPE_CHECKING:
    from nemo_cdt.config import Config
    from nemo_cdt.cost.flops import Work
    from nemo_cdt.megatron.engine import Engine
    from nemo_cdt.megatron.sums import StepSums

logger = logging.getLogger("nemo_cdt")


@dataclass(kw_only=True)
class LongCESettings(Settings):
    RENAMED: ClassVar[Mapping[str, str]] = {"internal": "stride"}

    name: str = "longce"
    window: int = 4096
    """The least number of tokens in the short context against which a token's weight is measured."""
    stride: int = 1024
    """The number of tokens that each window weighs, and by which the next window is further on."""
    gamma: float = 5.0
    """The largest weight of a token."""


@dataclass(kw_only=True)
class CDTLongCESettings(LongCESettings, CDTSettings):
    RENAMED: ClassVar[Mapping[str, str]] = {**CDTSettings.RENAMED, **LongCESettings.RENAMED}

    name: str = "cdt_longce"


class LongCE(Objective):
    """Trains with LongCE's weights.

    ``loss`` stays the plain cross-entropy, comparable between objectives; what is trained on is ``weighted_loss``.
    """

    label = "LongCE"
    about = (
        "LongCE weighs each token by how much its long context helps to predict it: its cross-entropy in a short "
        "window over that in the whole text, as a ratio of probabilities up to a cap."
    )
    settings_class: ClassVar[type[Settings]] = LongCESettings
    packs = True  # its windows
    fp8 = False
    METRICS: ClassVar[tuple[Metric, ...]] = (
        Metric(
            name="weighted_loss",
            title="training loss, weighted",
            unit="nats",
            explanation="what is trained on; loss is the plain cross-entropy",
            best="lowest",
        ),
        Metric(name="weight", title="LongCE weight, mean", explanation="the mean weight of a labelled token"),
        Metric(
            name="capped_fraction",
            title="LongCE weights at their cap, fraction",
            unit="fraction",
            explanation="the share of weights at objective.gamma",
        ),
        Metric(
            name="measured_fraction",
            title="labelled tokens in a window, fraction",
            unit="fraction",
            explanation="the share of labelled tokens that lie in a window; the first of a document weigh 1",
        ),
    )
    PASSES: ClassVar[tuple[Pass, ...]] = (
        Pass(
            metric="window_time",
            title="windows",
            sentence="LongCE first reads each text again in short windows, forward only, to weigh its tokens.",
        ),
    )

    def __init__(self, settings: LongCESettings) -> None:
        super().__init__(settings)
        self.sums: StepSums
        self._told = False

    def describe(self) -> list[str]:
        how = self.settings
        return [f"weights up to {how.gamma:g} from windows of {how.window:,} + {how.stride:,} tokens"]

    def check(self, config: Config) -> None:
        longest = (config.data.document_length or config.data.seq_length) + 1
        if self.settings.window >= longest:
            raise ValueError(
                f"objective.window={self.settings.window}, but documents have at most {longest} tokens: LongCE would "
                f"weigh none, set objective.window={longest // 2} or less, or data.seq_length"
            )

    def cost(self, config: Config) -> Work:
        """(K + d) / d forwards, of attention over K + d, of all tokens but a document's first K."""
        from nemo_cdt.cost import flops

        model, how = config.model, self.settings
        measured = max(0.0, 1 - how.window / flops.attended(config))
        read = (how.window + how.stride) / how.stride * measured
        keys = flops.keys(model, how.window + how.stride)
        return flops.Work(
            linears=read * 2 * model.num_layers * (flops.mlp_weights(model) + flops.attention_weights(model)),
            attention_forward=read * 4 * model.num_layers * model.query_size * keys,
            attention_backward=0.0,
            head=measured * 2 * flops.head_weights(model),
        )

    def start(self, engine: Engine) -> None:
        from nemo_cdt.megatron.sums import StepSums
        from nemo_cdt.objectives.longce.schedule import NAMES

        super().start(engine)
        self.sums = StepSums(NAMES)

    def wrap(self, schedule: Schedule) -> Schedule:
        from nemo_cdt.objectives.longce.schedule import LongCESchedule

        how = self.settings
        return LongCESchedule(schedule, window=how.window, stride=how.stride, gamma=how.gamma, sums=self.sums)

    def metrics(self) -> dict[str, float]:
        sums, window_time = self.sums.take()
        shares = {
            "weighted_loss": sums["weighted_loss"],
            "weight": sums["weight"],
            "capped_fraction": sums["capped"],
            "measured_fraction": sums["measured"],
        }
        if not (sums["measured"] or self._told):
            self._told = True
            logger.warning(
                "LongCE: no labelled token of this step lies behind objective.window=%d tokens of its document: it "
                "trains as plain cross-entropy",
                self.settings.window,
            )
        return {name: total / sums["tokens"] for name, total in shares.items()} | {"window_time": window_time}


class CDTLongCE(LongCE):
    """CDT finds noise by the plain mean cross-entropy, then trains with LongCE's weights on the denoised input.

    Windows are not denoised: noise was found in the whole context, and a window is another.
    """

    label = "CDT + LongCE"
    about = f"{CDT.about} {LongCE.about}"
    settings_class: ClassVar[type[Settings]] = CDTLongCESettings
    detects = True
    METRICS: ClassVar[tuple[Metric, ...]] = (*CDT.METRICS, *LongCE.METRICS)
    PASSES: ClassVar[tuple[Pass, ...]] = (*LongCE.PASSES, *CDT.PASSES)

    def __init__(self, settings: CDTLongCESettings) -> None:
        super().__init__(settings)
        self.cdt = CDT(settings)

    def describe(self) -> list[str]:
        return [*self.cdt.describe(), *super().describe()]

    def check(self, config: Config) -> None:
        self.cdt.check(config)
        super().check(config)

    def start(self, engine: Engine) -> None:
        self.cdt.start(engine)
        super().start(engine)

    def wrap(self, schedule: Schedule) -> Schedule:
        return super().wrap(self.cdt.wrap(schedule))

    def metrics(self) -> dict[str, float]:
        return self.cdt.metrics() | super().metrics()
