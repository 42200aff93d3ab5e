"""CDT behind the seam of :mod:`nemo_cdt.objectives.base`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar

from nemo_cdt.objectives.base import Metric, Objective, Pass, Schedule, Settings
from nemo_cdt.objectives.cdt.settings import CDTSettings

if TYPE_CHECKING:
    from nemo_cdt.config import Config
    from nemo_cdt.megatron.engine import Engine
    from nemo_cdt.objectives.cdt.detection import Detector

logger = logging.getLogger("nemo_cdt")


class CDT(Objective):
    """Each training step detects noise and trains on the denoised embeddings; validation is plain."""

    label = "CDT"
    about = (
        "Context Denoising Training (CDT) of a long-context language model. In every step the model first runs with "
        "frozen weights to see how much the loss depends on each input token (the length of the gradient of the "
        "token's embedding). Tokens it hardly depends on are noise: their embeddings are shifted a little way down the "
        "gradient. Then the model trains on the denoised input, so that it learns to rely on the few tokens that "
        "matter."
    )
    settings_class: ClassVar[type[Settings]] = CDTSettings
    detects = True
    METRICS: ClassVar[tuple[Metric, ...]] = (
        Metric(
            name="detection_loss",
            title="training loss before denoising",
            unit="nats",
            explanation="loss, but before denoising, on the same batch; this one compares with plain training's loss",
            best="lowest",
            on_bar=True,
        ),
        Metric(
            name="noise_fraction",
            title="noise fraction",
            unit="fraction",
            explanation="the share of tokens whose embedding gradient is shorter than the threshold",
            on_bar=True,
        ),
        Metric(
            name="threshold",
            title="detection threshold",
            explanation="the mean length of a document's (or row's) embedding gradients; mean over the step's",
        ),
        Metric(
            name="delta_to_embedding",
            title="shift, ‖δ‖ / ‖E‖",
            unit="fraction",
            explanation="how long the shift of a noise token is beside its embedding, before rounding; mean over them",
        ),
        Metric(
            name="changed_fraction",
            title="embedding elements changed, fraction",
            unit="fraction",
            explanation="the share of embedding elements that the shift changes at the model's precision",
        ),
    )
    PASSES: ClassVar[tuple[Pass, ...]] = (
        Pass(
            metric="detection_time",
            title="detection pass",
            sentence="CDT runs the model twice a step: once with frozen weights to find the noise, once to train. "
            "Frozen weights need no gradients, so the first run is the cheaper one.",
        ),
    )

    def __init__(self, settings: CDTSettings) -> None:
        super().__init__(settings)
        self.detector: Detector
        self._told: set[str] = set()

    def describe(self) -> list[str]:
        how = self.settings
        lr = "the step's learning rate" if how.shift_lr == "scheduled" else f"{how.shift_lr:g}"
        size = {
            "gradient": f"beta {how.beta:g} times {lr}, times the gradient",
            "relative": f"rho {how.rho:g} of its length",
            "epsilon": f"epsilon {how.epsilon:g} at most",
        }[how.normalization]
        return [
            f"strength: an embedding of noise moves down its gradient by {size}; threshold per {how.threshold_scope}"
        ]

    def check(self, config: Config) -> None:
        lr = self.settings.shift_lr
        number = isinstance(lr, (int, float)) and not isinstance(lr, bool)
        if not (lr == "scheduled" or number):
            raise ValueError(f"objective.shift_lr={lr}: set it to scheduled or to a number above 0")

    def start(self, engine: Engine) -> None:
        from nemo_cdt.objectives.cdt.denoise import Denoising
        from nemo_cdt.objectives.cdt.detection import Detector

        super().start(engine)
        how = self.settings
        self.detector = Detector(
            Denoising(normalization=how.normalization, epsilon=how.epsilon, rho=how.rho),
            how.threshold_scope,
            lambda: how.beta * (engine.learning_rate() if how.shift_lr == "scheduled" else how.shift_lr),
            engine.groups,
            engine.observe,
        )

    def wrap(self, schedule: Schedule) -> Schedule:
        from nemo_cdt.objectives.cdt.schedule import TwoPassSchedule

        lent = self.engine
        return TwoPassSchedule(
            schedule, self.detector, lent.take, pipelined=lent.pipelined, recompute=lent.recompute, fp8=lent.fp8
        )

    def metrics(self) -> dict[str, float]:
        sums, detection_time = self.detector.sums.take()
        found = {
            "detection_loss": _ratio(sums["detection_loss"], sums["labels"]),
            "noise_fraction": _ratio(sums["noise"], sums["tokens"]),
            "threshold": _ratio(sums["threshold"], sums["segments"]),
            "delta_to_embedding": _ratio(sums["relative_shift"], sums["noise"]),
            "changed_fraction": _ratio(sums["changed"], sums["tokens"] * self.engine.hidden_size),
            "detection_time": detection_time,
        }
        self._warn(found, sums)
        return found

    def _warn(self, found: dict[str, float], sums: dict[str, float]) -> None:
        if sums["silent"]:
            self._once(
                "documents whose embedding gradient is zero everywhere: they have no noise and are trained on as is"
            )
        if found["noise_fraction"] == 0:
            self._once("no token is noise in this step: it trains as plain cross-entropy")
        elif found["changed_fraction"] == 0 and found["delta_to_embedding"] > 0:
            self._once(
                "denoising changes no embedding element at this precision: training equals plain cross-entropy. Set "
                "model.fp32_residual=true, objective.normalization=relative, or a larger objective.beta"
            )

    def _once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            logger.warning("CDT: %s", message)


def _ratio(total: float, count: float) -> float:
    return total / count if count else 0.0
