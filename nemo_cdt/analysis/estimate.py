"""Means over samples with an interval, and the correlations and rankings that a measure is judged by."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES, SEED, CHUNK = 2000, 0, 1 << 22
ENOUGH = 3
"""Samples that have an interval: that of two would be the two."""


@dataclass(kw_only=True, slots=True)
class Estimate:
    """A mean over ``count`` samples, and its 95 % bootstrap interval over them; nan where there are too few."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        if self.count == 0:
            return "—"
        return f"{self.mean:.3g} {self.interval('.3g')}"

    def interval(self, spec: str, scale: float = 1, shift: float = 0) -> str:
        """Of ``scale * value + shift``, or over how many samples the mean is."""
        if np.isnan(self.low):
            return f"(n={self.count})"
        return f"[{scale * self.low + shift:{spec}}, {scale * self.high + shift:{spec}}]"

    def percent(self) -> str:
        """The mean as a percentage."""
        return "—" if self.count == 0 else f"{100 * self.mean:.3g} %"

    def json(self) -> dict[str, float | int | None]:
        number = {name: getattr(self, name) for name in ("mean", "low", "high")}
        return {name: None if np.isnan(value) else value for name, value in number.items()} | {"samples": self.count}


def estimate(values: Sequence[float] | np.ndarray) -> Estimate:
    """Samples without a value (nan) are left out, and out of the count."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    if len(known) == 0:
        return Estimate(mean=np.nan, low=np.nan, high=np.nan, count=0)
    low, high = bootstrap(known, RESAMPLES, SEED) if len(known) >= ENOUGH else (np.nan, np.nan)
    return Estimate(mean=float(known.mean()), low=low, high=high, count=len(known))


def ends(estimates: Sequence[Estimate]) -> np.ndarray:
    """How far their intervals reach below and above their means, [2, n], as matplotlib draws them."""
    reach = np.array([[one.mean - one.low, one.high - one.mean] for one in estimates]).T
    return np.maximum(reach, 0)  # of equal values the mean is rounded


def bootstrap(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """The percentile interval of the mean, 95 %."""
    rng = np.random.default_rng(seed)
    size = max(1, CHUNK // len(values))  # resamples at a time
    parts = [min(size, resamples - done) for done in range(0, resamples, size)]
    means = np.concatenate([values[rng.integers(len(values), size=(part, len(values)))].mean(axis=1) for part in parts])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def pearson(one: np.ndarray, other: np.ndarray) -> float:
    """nan for fewer than three tokens, or where all are alike."""
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return np.nan
    return float(np.corrcoef(one, other)[0, 1])


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of ranks; ties share theirs."""
    return pearson(stats.rankdata(one), stats.rankdata(other))


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """How likely a positive token scores above a negative one, a tie counting half; nan where either is missing."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if positives == 0 or negatives == 0:
        return np.nan
    above = stats.rankdata(score)[positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))
