"""A run at Weights & Biases and MLflow, by the ids that OUTPUT keeps: it goes on there when it is resumed."""

import logging
import os
from pathlib import Path
from typing import Any

from nemo_cdt.checkpoint.run_id import made_run_id, run_id
from nemo_cdt.config import Config
from nemo_cdt.utils.atomic_write import atomic_write
from nemo_cdt.utils.reading import read_yaml
from nemo_cdt.utils.user_errors import first_line
from nemo_cdt.validation.loggers import mlflow_in_output

IDS = "loggers.yaml"
"""In OUTPUT: by a logger's name the id that its run has there."""
logger = logging.getLogger("nemo_cdt")


def known_ids(output: Path) -> dict[str, str]:
    """Those of the earlier attempt, by the logger's name; none in a copy of a run, which is another one."""
    found = read_yaml(output / IDS) if (output / IDS).exists() else {}
    if not isinstance(found, dict) or found.pop("run", None) not in (None, run_id(output)):
        return {}
    return {str(name): str(each) for name, each in found.items()}


def keep_id(output: Path, name: str, value: str) -> None:
    ids = known_ids(output) | {name: value, "run": made_run_id(output)}
    atomic_write(output / IDS, "".join(f'{each}: "{ids[each]}"\n' for each in sorted(ids)))


def wandb_arguments(config: Config, run_id: str) -> dict[str, Any]:
    """Of ``wandb.init``; ``WANDB_MODE`` and the like hold where the configuration says nothing."""
    how = config.logger.wandb
    return {
        "id": run_id,
        "name": config.name,
        "project": how.project,
        "entity": how.entity,
        "group": how.group,
        "tags": how.tags or None,
        "dir": config.output,
        "resume": "allow",
        "mode": "offline" if how.offline else None,
    }


def mlflow_uri(config: Config) -> str:
    """Of MLflow's server, or of the database in OUTPUT."""
    if mlflow_in_output(config):
        return f"sqlite:///{Path(config.output, 'mlflow', 'mlflow.db').absolute()}"
    return str(config.logger.mlflow.tracking_uri or os.environ["MLFLOW_TRACKING_URI"])


def send_report(config: Config, report: Path) -> None:
    """Adds the report to the run's artifacts, wherever it is logged. A failure is a warning: the run is done."""
    ids = known_ids(Path(config.output))
    for name, send in (("wandb", _to_wandb), ("mlflow", _to_mlflow)):
        if name in config.logger.chosen and name in ids:
            try:
                send(config, ids[name], report)
            except Exception as error:  # of the network, of a server
                logger.warning("%s did not take %s: %s", name, report, first_line(error))


def _to_wandb(config: Config, run_id: str, report: Path) -> None:
    import wandb

    with wandb.init(**wandb_arguments(config, run_id)) as run:
        artifact = wandb.Artifact(f"report-{run_id}", type="report")
        artifact.add_file(str(report))
        run.log_artifact(artifact)


def _to_mlflow(config: Config, run_id: str, report: Path) -> None:
    from mlflow.tracking import MlflowClient

    MlflowClient(mlflow_uri(config)).log_artifact(run_id, str(report))
