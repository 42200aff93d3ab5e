"""The seam between an objective and everything around it: one class to derive from.

Before a run starts nothing here imports torch: an objective's own module imports its schedule inside :meth:`wrap`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from nemo_cdt.config import Config
    from nemo_cdt.cost.flops import Work
    from nemo_cdt.megatron.engine import Engine

Schedule = Callable[..., list]
"""One of Megatron's forward-backward schedules, or what wraps one: keyword arguments alone, and the same."""


@dataclass(kw_only=True)
class Settings:
    """The keys of ``objective.``. Derive a dataclass for an objective: a key that is not there cannot be set."""

    MAY_BE_ZERO: ClassVar[frozenset[str]] = frozenset()
    """Of the numbers, which may be 0. The others are refused below, and at, 0."""
    MAY_BE_NEGATIVE: ClassVar[frozenset[str]] = frozenset()
    """Of the numbers, which may be anything finite."""

    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Keys as they were called before, and what they are called now. The old ones work for a release."""

    name: str = ""
    """The objective; set it as objective=NAME."""


@dataclass(kw_only=True, frozen=True)
class Metric:
    """A figure that is logged with every step.

    Attributes:
        name: as in metrics.jsonl.
        title: as in the report's table, with the unit.
        explanation: one line that says what it is.
        unit: in which it is measured; empty for a plain number.
        best: whether a lower or a higher value is better, where that can be said.
        on_bar: shown beside the loss while the run trains.
    """

    name: str
    title: str
    explanation: str
    unit: str = ""
    best: Literal["lowest", "highest"] | None = None
    on_bar: bool = False


@dataclass(kw_only=True, frozen=True)
class Pass:
    """What a step does before its training pass.

    Attributes:
        metric: the seconds that it takes, as logged.
        title: what it is called in pictures.
        sentence: what it does, for their caption.
    """

    metric: str
    title: str
    sentence: str

    @property
    def metric_of_time(self) -> Metric:
        """What is logged of it."""
        return Metric(
            name=self.metric,
            title=f"{self.title}, s",
            unit="s",
            explanation=f"seconds of a step in the {self.title}, before the training pass",
        )


class Objective:
    """One way to train. A front end makes one for a run, lends it the engine, and asks it once a step.

    Attributes:
        settings: what was set under ``objective.``.
        engine: lent when training starts.
    """

    label: ClassVar[str]
    """What it is called, for people."""
    about: ClassVar[str]
    """A sentence or two that say what it does, for the report."""
    settings_class: ClassVar[type[Settings]] = Settings
    METRICS: ClassVar[tuple[Metric, ...]] = ()
    """What :meth:`metrics` logs, but for the seconds of PASSES."""
    PASSES: ClassVar[tuple[Pass, ...]] = ()
    detects: ClassVar[bool] = False
    """Each step finds noise in a frozen forward and backward of its own: memory, time and the sample ask for it."""
    packs: ClassVar[bool] = False
    """Some of what it runs is packed rows, whatever the data's are."""
    preferences: ClassVar[bool] = False
    """It trains on preferences, and on nothing else."""
    prompted: ClassVar[bool] = False
    """Every document must have a prompt that is not trained on."""
    fp8: ClassVar[bool] = True
    """Its passes may run in FP8."""

    def __init__(self, settings: Settings) -> None:
        self.settings: Any = settings
        self.engine: Engine

    # Before training, without torch.

    def describe(self) -> list[str]:
        """What was set, in a few words each."""
        return []

    def check(self, config: Config) -> None:
        """Raise ValueError, with what to set instead, for a run in which this objective cannot be."""

    def cost(self, config: Config) -> Work | None:
        """FLOPs of one token in forward passes of its own: neither training's pass nor detection's."""
        return None

    # In training, on every rank.

    def start(self, engine: Engine) -> None:
        """Keeps what the front end lends; called once, when the layout is known and before the first step.

        Collective. One that overrides it calls this one first.
        """
        self.engine = engine

    def wrap(self, schedule: Schedule) -> Schedule:
        """Megatron's schedule, or what runs in its place in a training step. Validation is never wrapped."""
        return schedule

    def metrics(self) -> dict[str, float]:
        """What the step that has just ended did, by the names of METRICS and PASSES. Collective."""
        return {}
