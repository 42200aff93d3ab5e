"""Context Denoising Training: two passes, the second on embeddings from which noise was taken away."""

from nemo_cdt.objectives.cdt.objective import CDT
from nemo_cdt.objectives.cdt.settings import CDTSettings, DetectionRecompute, Normalization, ThresholdScope

OBJECTIVES = {"cdt": CDT}

__all__ = ["CDT", "OBJECTIVES", "CDTSettings", "DetectionRecompute", "Normalization", "ThresholdScope"]
