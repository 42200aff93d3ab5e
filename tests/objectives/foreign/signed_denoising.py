"""An objective of somebody else's: noise tokens move by the sign of their gradient."""

from dataclasses import dataclass
from typing import ClassVar

from nemo_cdt.objectives import Metric, Objective, Settings


@dataclass(kw_only=True)
class SignedSettings(Settings):
    name: str = "signed"
    size: float = 0.01  # of each element's move


class Signed(Objective):
    label = "signed denoising"
    about = "Noise tokens move by the sign of their gradient."
    settings_class = SignedSettings
    detects = True
    METRICS: ClassVar = (Metric(name="moved", title="tokens moved, fraction", explanation="the share of noise tokens"),)

    def describe(self):
        return [f"size {self.settings.size:g}"]

    def check(self, config):
        if self.settings.size > 1:
            raise ValueError(f"objective.size={self.settings.size}: set it to 1 or less")

    def start(self, engine):
        from nemo_cdt.objectives.cdt import ThresholdScope
        from nemo_cdt.objectives.cdt.denoise import Denoising
        from nemo_cdt.objectives.cdt.detection import Detector

        class SignDetector(Detector):
            def shift(detector, leaf_SBH, batch):  # noqa: N805
                grad_SBH = leaf_SBH.grad
                moved_SBH = super().shift(leaf_SBH, batch)
                return -self.settings.size * grad_SBH.sign() * (moved_SBH != 0).any(-1, keepdim=True)

        super().start(engine)
        self.detector = SignDetector(Denoising(), ThresholdScope.document, lambda: 1.0, engine.groups, engine.observe)

    def wrap(self, schedule):
        from nemo_cdt.objectives.cdt.schedule import TwoPassSchedule

        return TwoPassSchedule(schedule, self.detector, self.engine.take, pipelined=self.engine.pipelined)

    def metrics(self):
        sums, _ = self.detector.sums.take()
        return {"moved": sums["noise"] / sums["tokens"]}
