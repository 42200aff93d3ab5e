"""What a run folder holds, read for a report. A piece that is missing or broken becomes a remark, not a crash."""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nemo_cdt.config import Config, load
from nemo_cdt.data.documents import TokenType
from nemo_cdt.describe import describe
from nemo_cdt.objectives import objective_of
from nemo_cdt.report.study import Study, read_study
from nemo_cdt.utils.reading import FileError, blamed_on, metrics_row, read_json, read_lines

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
    study: Study | None = None
    versions: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return objective_of(self.config).label

    @property
    def about(self) -> str:
        return objective_of(self.config).about


def read_run(folder: Path) -> Run:
    """ValueError where ``folder`` is no run: no ``config.yaml``, or no training step in ``metrics.jsonl``."""
    run = _read_training(folder)
    parts = {"baseline": _read_training, "sample": _read_sample, "study": read_study, "versions": _read_versions}
    for name, read in parts.items():
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
    if cut := _sum(rows, "truncated_documents"):
        lost = _sum(rows, "truncated_tokens")
        run.remarks.append(f"data.truncate=true cut documents that are too long {cut:,} times, {lost:,} tokens in all.")
    if diverged := [row["step"] for row in training if math.isnan(_number(row["loss"]))]:
        run.remarks.append(f"The loss is no number in {len(diverged)} steps, first at step {min(diverged)}.")
    return run


def _read_config(path: Path) -> Config:
    if not path.is_file():
        raise ValueError(f"{path.parent} is no run: it has no {path.name}; give the folder a run wrote (output=DIR)")
    config = load(path)
    with blamed_on(path):
        describe(config)  # which the page shows
    return config


def _read_rows(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows, and the numbers of the lines that are none (cut off when a run was killed)."""
    if not path.is_file():
        raise ValueError(f"{path.parent} is no run: it has no {path.name}; give the folder a run wrote (output=DIR)")
    rows, broken = [], []
    for number, line in read_lines(path):
        if (row := metrics_row(line, path)) is None:
            broken.append(number)
        else:
            rows.append(row)
    return rows, broken


def _sum(rows: list[dict[str, Any]], key: str) -> int:
    numbers = (_number(row.get(key)) for row in rows)
    return int(sum(number for number in numbers if not math.isnan(number)))


def _series(rows: Iterable[dict[str, Any]]) -> Series:
    by_step = {row["step"]: row for row in rows}  # the later row of a step wins: a resumed run repeats steps
    ordered = [by_step[step] for step in sorted(by_step)]
    columns = {key: np.array([_number(row.get(key)) for row in ordered]) for key in set().union(*ordered)}
    return {key: column for key, column in columns.items() if not np.isnan(column).all()}


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or abs(value) > sys.float_info.max:
        return math.nan
    return float(value)


def _read_sample(path: Path) -> Sample:
    with blamed_on(path.name, "it is not a sample of a run"):
        raw = read_json(path)
        sample = Sample(
            step=int(raw["step"]),
            tokens=[str(token) for token in raw["tokens"]],
            types=None if raw["types"] is None else np.array([TokenType(value) for value in raw["types"]], int),
            scores=np.array(raw["scores"], float),
            threshold=float(raw["threshold"]),
            noise=np.array(raw["noise"], bool),
            labels=np.array(raw["labels"], bool),
        )
    columns = {"types": sample.types, "scores": sample.scores, "noise": sample.noise, "labels": sample.labels}
    for name, column in columns.items():
        if column is not None and column.shape != (len(sample.tokens),):
            raise FileError(f"{path.name} has {len(sample.tokens)} tokens but {column.size} {name}")
    if not sample.tokens:
        raise ValueError(f"{path.name} has no tokens")
    return sample


def _read_versions(path: Path) -> dict[str, str]:
    return {package: str(version) for package, version in read_json(path).items()}


def _what_is_missing(run: Run) -> list[str]:
    remarks = []
    if run.baseline is None:
        remarks.append("No baseline in this run, so its curves stand alone (compare_to=ce trains one beside it).")
    if not objective_of(run.config).detects:
        remarks.append(f"{run.label} detects no noise, so there is no noise, threshold or strength to show.")
    elif run.sample is None:
        remarks.append("No sample.json in this run, so there is no token heat map.")
    return remarks
