"""The schema of ``conf/objective``: what is trained."""

from dataclasses import dataclass
from typing import Any

from nemo_cdt.utils.enums import StrEnum


class ObjectiveName(StrEnum):
    """What is trained: conf/objective/NAME.yaml says where each comes from."""

    cdt = "cdt"
    ce = "ce"
    sft = "sft"
    longce = "longce"
    cdt_longce = "cdt_longce"
    logo = "logo"

    @property
    def denoises(self) -> bool:
        """Runs the two passes of CDT."""
        return self in (ObjectiveName.cdt, ObjectiveName.cdt_longce)

    @property
    def weighs(self) -> bool:
        """Weighs tokens as LongCE does."""
        return self in (ObjectiveName.longce, ObjectiveName.cdt_longce)


class Normalization(StrEnum):
    """How a noise token's embedding gradient becomes its shift; see :mod:`nemo_cdt.denoise`."""

    gradient = "gradient"
    epsilon = "epsilon"
    relative = "relative"


class ThresholdScope(StrEnum):
    document = "document"
    row = "row"


class DetectionRecompute(StrEnum):
    """What detection computes again; ``auto`` is what costs least of what fits: see :mod:`nemo_cdt.cost.memory`."""

    auto = "auto"
    none = "none"
    selective = "selective"
    full = "full"


@dataclass(kw_only=True, slots=True)
class Objective:
    name: ObjectiveName = ObjectiveName.cdt
    beta: float = 5.0
    lr: Any = "scheduled"  # "scheduled": the optimizer's current learning rate; or a number
    normalization: Normalization = Normalization.gradient
    rho: float = 0.01
    epsilon: float = 1e-3
    threshold_scope: ThresholdScope = ThresholdScope.document
    detection_recompute: DetectionRecompute = DetectionRecompute.auto
    window: int = 4096  # LongCE: tokens of short context, at least, that a token's weight is measured against
    internal: int = 1024  # LongCE: tokens that each window weighs, and by which the next one is further on
    gamma: float = 5.0  # LongCE: the largest weight
    preference_beta: float = 10.0  # LOGO: of its log-sigmoid
    margin: float = 0.3  # LOGO: of mean log-probability that is asked of the chosen answer; SimPO's gamma / beta
    sft_weight: float = 0.1  # LOGO: of the chosen answer's own mean cross-entropy
