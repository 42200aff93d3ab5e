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
    """The strength of the shift: a noise token's embedding moves by its gradient times shift_lr times beta. 0 is plain
    training."""
    shift_lr: Any = "scheduled"
    """The learning rate in the shift's strength: scheduled takes the optimizer's current one; or set a number."""
    normalization: Normalization = Normalization.gradient
    """How a noise token's gradient g becomes its shift: gradient moves it by shift_lr * beta * g (Eq. 3), epsilon by
    epsilon / (1 + |g|) * g, relative by the share rho of the embedding's length."""
    rho: float = 0.01
    """The strength of the shift with normalization=relative: its length as a share of the embedding's length."""
    epsilon: float = 1e-3
    """The strength of the shift with normalization=epsilon."""
    threshold_scope: ThresholdScope = ThresholdScope.document
    """What one threshold is the mean over: each document, or the whole packed row, as in the authors' trainer."""
    detection_recompute: DetectionRecompute = DetectionRecompute.auto
    """Which activations the detection pass computes again in its backward; auto takes the cheapest choice that fits
    into the GPU, by the memory model of `nemo-cdt plan`."""


def detection_settings(of: Settings) -> CDTSettings:
    """Those of an objective that detects; for validation beside another, which detects too, the defaults."""
    return of if isinstance(of, CDTSettings) else CDTSettings()
