"""Samples that were answered right and wrong, and means over the tokens of a type."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np

from nemo_cdt.analysis.estimate import Estimate, estimate
from nemo_cdt.analysis.observe import Observation
from nemo_cdt.analysis.result import Table
from nemo_cdt.analysis.samples import CONTEXT
from nemo_cdt.data.documents import TokenType
from nemo_cdt.report.heatmap import TYPE_NAMES


class Answered(Protocol):
    @property
    def correct(self) -> bool: ...


T = TypeVar("T", bound=Answered)
Groups = dict[str, list[Observation]]
ByType = Callable[[Observation], dict[TokenType, float]]
"""A number for each type of context token; nan for types that do not occur."""


def groups(observations: Sequence[T]) -> dict[str, list[T]]:
    return {
        "all": list(observations),
        "correct": [one for one in observations if one.correct],
        "wrong": [one for one in observations if not one.correct],
    }


def mean_by_type(values_N: np.ndarray, types_N: np.ndarray) -> dict[TokenType, float]:
    return {type: float(values_N[types_N == type].mean()) if type in types_N else np.nan for type in CONTEXT}


def heads_by_type(values_LHT: np.ndarray) -> dict[TokenType, float]:
    """The mean over all heads of all layers."""
    mean_T = values_LHT.mean(axis=(0, 1))
    return {type: float(mean_T[type]) for type in CONTEXT}


def shares(by_type: dict[TokenType, float]) -> dict[TokenType, float]:
    """Divided by their sum, as in the paper's Figure 3: what a token of each type would get of 1."""
    total = np.nansum(list(by_type.values()))
    return {type: value / total if total > 0 else np.nan for type, value in by_type.items()}


def blind_share(observations: Sequence[Observation]) -> Estimate:
    """What each type gets of 1 where all are alike: one in so many as a sample has."""
    return estimate([1 / max(1, sum(type in one.sample.types for type in CONTEXT)) for one in observations])


def estimates(found: Groups, of: ByType) -> dict[str, dict[TokenType, Estimate]]:
    """For each group and type, over the group's samples."""
    result = {}
    for name, members in found.items():
        by_sample = [of(one) for one in members]
        result[name] = {type: estimate([values[type] for values in by_sample]) for type in CONTEXT}
    return result


def type_table(title: str, caption: str, found: dict[str, dict[TokenType, Estimate]]) -> Table:
    """A row for each type, a column for each group."""
    rows = [[TYPE_NAMES[type], *(str(by_type[type]) for by_type in found.values())] for type in CONTEXT]
    header = ["token type", *(name if name == "all" else f"{name} answers" for name in found)]
    return Table(title=title, caption=caption, header=header, rows=rows)


def as_json(found: dict[str, dict[TokenType, Estimate]]) -> dict[str, dict[str, dict]]:
    return {name: {type.name: one.json() for type, one in by_type.items()} for name, by_type in found.items()}
