"""A run's job, and what runs jobs: the one seam that Slurm, Kubernetes and this machine have in common."""

from dataclasses import dataclass
from typing import Protocol

from nemo_cdt.config import Config
from nemo_cdt.config.launcher import Launcher


@dataclass(frozen=True)
class Job:
    """What a submitted run is known by: job ids of Slurm in their order, one name in Kubernetes, or a process id."""

    launcher: Launcher
    output: str
    ids: list[str]


@dataclass(frozen=True)
class State:
    """``lines`` for people, told again when ``phase`` changes; ``ended`` and ``succeeded`` of the run as a whole.

    ``saved``: of one that ended and did not succeed, what is left of it.
    """

    lines: list[str]
    phase: str
    ended: bool
    succeeded: bool
    saved: str = ""


class Cluster(Protocol):
    """What runs jobs. It remembers how much of a log it has given."""

    def submit(self, config: Config) -> list[str]: ...
    def is_alive(self, job: Job) -> bool: ...
    def state(self, job: Job) -> State: ...
    def new_log(self, job: Job) -> str: ...
    def cancel(self, job: Job) -> None: ...
