"""The keys of ``logger.``: where a run's figures go beside ``OUTPUT/metrics.jsonl``. No key holds a password."""

from dataclasses import dataclass, field, fields
from typing import Optional


@dataclass(kw_only=True, slots=True)
class TensorBoard:
    use: bool = False  # set by logger=tensorboard


@dataclass(kw_only=True, slots=True)
class Wandb:
    use: bool = False  # set by logger=wandb
    project: str = "nemo-cdt"  # the project at Weights & Biases
    entity: Optional[str] = None  # a team or a user; null: the account's own
    group: Optional[str] = None  # runs that are shown together
    tags: list[str] = field(default_factory=list)  # words by which the run is found
    offline: bool = False  # write to OUTPUT/wandb alone; `wandb sync OUTPUT/wandb/offline-run-*` sends it later


@dataclass(kw_only=True, slots=True)
class MLflow:
    use: bool = False  # set by logger=mlflow
    experiment: str = "nemo-cdt"  # the experiment of MLflow, which holds runs
    tracking_uri: Optional[str] = (
        None  # the server; null: that of MLFLOW_TRACKING_URI, else a database in OUTPUT/mlflow
    )
    tags: dict[str, str] = field(default_factory=dict)  # names and values by which the run is found


@dataclass(kw_only=True, slots=True)
class Loggers:
    tensorboard: TensorBoard = field(default_factory=TensorBoard)
    wandb: Wandb = field(default_factory=Wandb)
    mlflow: MLflow = field(default_factory=MLflow)

    @property
    def chosen(self) -> list[str]:
        """The names of those that are used."""
        return [item.name for item in fields(self) if getattr(self, item.name).use]
