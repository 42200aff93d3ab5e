"""What a run folder holds, read for a report. A piece that is missing or broken becomes a remark, not a crash."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from nemo_cdt.config import Config
from nemo_cdt.data.documents import TokenType
from nemo_cdt.describe import NAMES

Series = dict[str, np.ndarray]
"""Columns of ``metrics.jsonl``, float64 and ordered by ``step``; nan where a row has no finite number."""


@dataclass(kw_only=True, slots=True)
class Sample:
    """One detected document. Arrays are [fed tokens]; ``scores`` are L2 norms of the embedding gradients."""

    step: int
    tokens: list[str]
    types: np.ndarray | None
    scores: np.ndarray
    threshold: float
    noise: np.ndarray
    labels: np.ndarray


@dataclass(kw_only=True, slots=True)
class Run:
    config: Config
    training: Series
    validation: Series | None
    baseline: "Run | None" = None
    sample: Sample | None = None
    versions: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return NAMES[self.config.objective.name]


def read_run(folder: Path) -> Run:
    """ValueError where ``folder`` is no run: no ``config.yaml``, or no training step in ``metrics.jsonl``."""
    run = _read_training(folder)
    for name, read in {"baseline": _read_training, "sample": _read_sample, "versions": _read_versions}.items():
        path = folder / (name if name == "baseline" else f"{name}.json")
        if path.exists():
            try:
                setattr(run, name, read(path))
            except ValueError as error:
                run.remarks.append(f"Left out the {name}: {error}.")
    run.remarks += [f"Baseline: {remark}" for remark in run.baseline.remarks] if run.baseline else []
    run.remarks += _what_is_missing(run)
    return run


def _read_training(folder: Path) -> Run:
    config = _read_config(folder / "config.yaml")
    rows, broken = _read_rows(folder / "metrics.jsonl")
    training = [row for row in rows if "loss" in row]
    validation = [row for row in rows if "val_loss" in row]
    if not training:
        raise ValueError(f"{folder / 'metrics.jsonl'}: no training step in it yet; nothing to report")
    run = Run(config=config, training=_series(training), validation=_series(validation) if validation else None)
    if broken:
        lines = ", ".join(map(str, broken))
        run.remarks.append(f"Skipped unreadable metrics (line {lines}): the run was killed while writing there.")
    if cut := sum(int(row.get("truncated_documents", 0)) for row in rows):
        lost = sum(int(row.get("truncated_tokens", 0)) for row in rows)
        run.remarks.append(f"data.truncate=true cut documents that are too long {cut:,} times, {lost:,} tokens in all.")
    if diverged := [row["step"] for row in training if math.isnan(_number(row["loss"]))]:
        run.remarks.append(f"The loss is no number in {len(diverged)} steps, first at step {min(diverged)}.")
    return run


def _read_config(path: Path) -> Config:
    if not path.is_file():
        raise ValueError(f"{path.parent} is no run: it has no {path.name}; give the folder a run wrote (output=DIR)")
    try:
        loaded = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
        return cast(Config, OmegaConf.to_object(loaded))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"{path}: not a resolved config of this version: {str(error).splitlines()[0]}") from error


def _read_rows(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows, and the numbers of the lines that are none (cut off when a run was killed)."""
    if not path.is_file():
        raise ValueError(f"{path.parent} is no run: it has no {path.name}; give the folder a run wrote (output=DIR)")
    rows, broken = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            broken.append(number)
    return rows, broken


def _series(rows: Iterable[dict[str, Any]]) -> Series:
    by_step = {row["step"]: row for row in rows}  # the later row of a step wins: a resumed run repeats steps
    ordered = [by_step[step] for step in sorted(by_step)]
    columns = {key: np.array([_number(row.get(key)) for row in ordered]) for key in set().union(*ordered)}
    return {key: column for key, column in columns.items() if not np.isnan(column).all()}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _read_sample(path: Path) -> Sample:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        sample = Sample(
            step=int(raw["step"]),
            tokens=[str(token) for token in raw["tokens"]],
            types=None if raw["types"] is None else np.array([TokenType(value) for value in raw["types"]], int),
            scores=np.array(raw["scores"], float),
            threshold=float(raw["threshold"]),
            noise=np.array(raw["noise"], bool),
            labels=np.array(raw["labels"], bool),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is not a sample of a run ({type(error).__name__}: {error})") from error
    columns = {"types": sample.types, "scores": sample.scores, "noise": sample.noise, "labels": sample.labels}
    for name, column in columns.items():
        if column is not None and column.shape != (len(sample.tokens),):
            raise ValueError(f"{path.name} has {len(sample.tokens)} tokens but {column.size} {name}")
    if not sample.tokens:
        raise ValueError(f"{path.name} has no tokens")
    return sample


def _read_versions(path: Path) -> dict[str, str]:
    versions = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(versions, dict):
        raise ValueError(f"{path.name} is no JSON object of package: version")
    return {str(package): str(version) for package, version in versions.items()}


def _what_is_missing(run: Run) -> list[str]:
    remarks = []
    if run.baseline is None:
        remarks.append("No baseline in this run, so its curves stand alone (compare_to=ce trains one beside it).")
    if not run.config.objective.name.denoises:
        remarks.append(f"{run.label} detects no noise, so there is no noise, threshold or strength to show.")
    elif run.sample is None:
        remarks.append("No sample.json in this run, so there is no token heat map.")
    return remarks
