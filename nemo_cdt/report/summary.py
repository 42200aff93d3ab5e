"""A run in words and numbers: what was run, its first, last and best values, and whether denoising did anything."""

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_cdt.describe import describe
from nemo_cdt.objectives import objective_of
from nemo_cdt.objectives.cdt.settings import Normalization
from nemo_cdt.objectives.glossary import figures
from nemo_cdt.report.run import Run, Series

HARDLY_ANYTHING = 1e-4
"""Fraction of changed embedding elements below which a run is plain training in all but name."""

Best = Callable[[np.ndarray], int] | None

BEST: dict[str | None, Best] = {"lowest": np.nanargmin, "highest": np.nanargmax, None: None}


@dataclass(kw_only=True, slots=True)
class Row:
    name: str
    cells: list[str]  # first, last, best of the run; then last, best of the baseline where there is one


def headline(run: Run) -> list[tuple[str, str]]:
    """(value, what it is): the few numbers to read first."""
    tiles = []
    for one in filter(None, (run, run.baseline)):
        kind, series, key = ("validation", one.validation, "val_loss")
        if series is None:
            kind, series, key = ("training", one.training, "loss")
        tiles.append((number(_values(series, key)[-1]), f"last {kind} loss, {one.label}"))
    if "noise_fraction" in run.training:
        tiles.append((f"{100 * _median(run.training, 'noise_fraction'):.0f} %", "of tokens called noise (median)"))
    if "delta_to_embedding" in run.training:
        tiles.append((number(_median(run.training, "delta_to_embedding")), "shift relative to embedding (median)"))
    if run.baseline is not None:
        ratio = _median(run.training, "step_time") / _median(run.baseline.training, "step_time")
        tiles.append((f"{ratio:.2f}x", f"step time of {run.baseline.label} (medians)"))
    return tiles


def facts(run: Run) -> list[tuple[str, str]]:
    """(name, value): what was run."""
    found = describe(run.config)
    if (exported := run.config.export.hf) is not None:
        found["Exported"] = f"{exported}, for transformers.AutoModelForCausalLM.from_pretrained"
    found["Steps"] = f"{int(run.training['step'][-1]):,} of {found['Steps']}"
    if run.versions:
        found["Versions"] = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return list(found.items())


def again(run: Run, folder: Path) -> str:
    """The command that runs the same, from its ``config.yaml``, into a folder ``again``."""
    hydra = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]  # as conf/config.yaml has them
    words = ["--config-path", str(folder.resolve()), *hydra, "resume=false", "output=again"]
    if run.config.export.hf is not None:
        words.append("export.hf=again/hf")
    return shlex.join(["nemo-cdt", "train", *words])


def table(run: Run) -> list[Row]:
    rows = [Row(name=name, cells=_cells(run, key, best)) for key, (name, best) in _metrics(run).items()]
    return [row for row in rows if any(cell != "—" for cell in row.cells)]


def _metrics(run: Run) -> dict[str, tuple[str, Best]]:
    """What every run logs, and what the run's objective does, behind the loss."""
    return {name: (metric.title, BEST[metric.best]) for name, metric in figures(objective_of(run.config)).items()}


def notice(run: Run) -> str | None:
    """What to set instead, where the median step's denoising changes (almost) no embedding element."""
    if "changed_fraction" not in run.training:
        return None
    changed = _median(run.training, "changed_fraction")
    if not changed < HARDLY_ANYTHING:
        return None
    objective = run.config.objective
    knob = {"gradient": "beta", "relative": "rho", "epsilon": "epsilon"}[objective.normalization]
    remedies = [f"a larger objective.{knob} (now {getattr(objective, knob):g})"]
    if objective.normalization != Normalization.relative:
        remedies.append("objective.normalization=relative")
    if not run.config.model.fp32_residual:
        remedies.append("model.fp32_residual=true")
    return (
        f"The denoising step changes (almost) nothing at this precision ({run.config.trainer.precision}): in the "
        f"median step {100 * changed:.2g} % of the embedding elements differ afterwards, so this run is plain training "
        f"at a higher price. Set {', or '.join(remedies)}."
    )


def number(value: float) -> str:
    return "—" if np.isnan(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _cells(run: Run, key: str, best: Best) -> list[str]:
    found = _first_last_best(run, key, best)
    if run.baseline is not None:
        found += _first_last_best(run.baseline, key, best)[1:]
    numbers = in_equal_digits([value for value, _ in found])
    return [text if step is None else f"{text} (step {step:,})" for text, (_, step) in zip(numbers, found, strict=True)]


def in_equal_digits(values: list[float]) -> list[str]:
    """With as many decimals each, so that they can be compared by eye: four digits of the largest."""
    known = [abs(value) for value in values if not np.isnan(value)]
    largest = max(known, default=0.0)
    if 0 < largest < 1e-3:
        return [_dash(value, f"{value:.3e}") for value in values]
    decimals = 0 if largest >= 1000 else 4 if largest < 1 else 3 - math.floor(math.log10(largest))
    return [_dash(value, f"{value:,.{decimals}f}") for value in values]


def _dash(value: float, text: str) -> str:
    return "—" if np.isnan(value) else text


def _first_last_best(run: Run, key: str, best: Best) -> list[tuple[float, int | None]]:
    """Each with the step that it is of, where that is told."""
    nothing = (float("nan"), None)
    series = run.validation if key.startswith("val_") else run.training
    if series is None or key not in series:
        return [nothing] * 3
    values = _values(series, key)
    first_and_last: list[tuple[float, int | None]] = [(float(values[0]), None), (float(values[-1]), None)]
    if best is None or np.isnan(values).all():
        return [*first_and_last, nothing]
    at = best(values)
    return [*first_and_last, (float(values[at]), int(series["step"][at]))]


def _values(series: Series, key: str) -> np.ndarray:
    return series.get(key, np.array([np.nan]))


def _median(series: Series, key: str) -> float:
    return float(np.nanmedian(_values(series, key)))
