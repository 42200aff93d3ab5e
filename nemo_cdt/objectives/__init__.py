"""What can be trained. Each room below holds one objective, or two that share their mathematics: its settings, its
checks, its schedule, what it logs, what it says of itself and what it costs.

A room is found by being here. An objective of somebody else's is found by the entry point group
``nemo_cdt.objectives``, under its name: see :mod:`nemo_cdt.objectives.base` and CONTRIBUTING.md.
"""

from nemo_cdt.objectives.base import Metric, Objective, Pass, Settings
from nemo_cdt.objectives.registry import (
    baseline_of,
    holders,
    loadable,
    names,
    objective_class,
    objective_of,
    objectives_of,
)

__all__ = [
    "Metric",
    "Objective",
    "Pass",
    "Settings",
    "baseline_of",
    "holders",
    "loadable",
    "names",
    "objective_class",
    "objective_of",
    "objectives_of",
]
