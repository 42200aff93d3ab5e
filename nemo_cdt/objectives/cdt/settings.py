"""The keys of ``objective=cdt``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from nemo_cdt.objectives.base import Settings
from nemo_cdt.utils.enums import StrEnum


class Normalization(StrEnum):
    """How a noise token's embedding gradient becomes its shift; see :mod:`nemo_cdt.objectives.cdt.denoise`."""

    gradient = "gradient"
    epsilon = "epsilon"
    relative = "relative"


class ThresholdScope(StrEnum):
    """Over what one threshold is the mean."""

    document = "document"
    row = "row"


class DetectionRecompute(StrEnum):
    """What detection's backward computes again; ``auto``: what costs least of what fits (nemo_cdt/cost/memory.py)."""

    auto = "auto"
    none = "none"
    selective = "selective"
    full = "full"


@dataclass(kw_only=True)
class CDTSettings(Settings):
    MAY_BE_ZERO = frozenset({"beta"})
    RENAMED: ClassVar[Mapping[str, str]] = {"lr": "shift_lr"}

    name: str = "cdt"
    beta: float = 5.0
    shift_lr: Any = "scheduled"  # of the shift. "scheduled": the optimizer's current learning rate; or a number
    normalization: Normalization = Normalization.gradient
    rho: float = 0.01
    epsilon: float = 1e-3
    threshold_scope: ThresholdScope = ThresholdScope.document
    detection_recompute: DetectionRecompute = DetectionRecompute.auto


def detection_settings(of: Settings) -> CDTSettings:
    """Those of an objective that detects; for validation beside another, which detects too, the defaults."""
    return of if isinstance(of, CDTSettings) else CDTSettings()
