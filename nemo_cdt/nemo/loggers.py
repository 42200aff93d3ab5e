"""The loggers of a run, Lightning's own: what ``metrics.jsonl`` has goes to each, by the same names and steps."""

import logging
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

from nemo_cdt.config import Config, walk
from nemo_cdt.console import is_first_rank
from nemo_cdt.nemo.metrics import named
from nemo_cdt.tracking import keep_id, known_ids, mlflow_uri, wandb_arguments
from nemo_cdt.utils.user_errors import first_line

logger = logging.getLogger("nemo_cdt")
PAUSE = 60
"""Seconds for which a server that did not answer is left alone."""
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Where the environment says nothing: MLflow's own would wait for minutes, and a run with it."""


class _TensorBoard(TensorBoardLogger):
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(*named(metrics, step))

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Any = None) -> None:
        """Without the figure ``hp_metric``, in whose place Lightning would else want one."""
        self.hparams.update(params)
        for summary in hparams(params, {}):
            self.experiment._get_file_writer().add_summary(summary)


class _Wandb(WandbLogger):
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(*named(metrics, step))


class _MLflow(MLFlowLogger):
    """Its server may go away while a run trains, which does not end for that: ``metrics.jsonl`` has its figures.

    It is asked again after a while only, or each step would wait for a time-out.
    """

    _asked_again = 0.0

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if time.monotonic() < self._asked_again:
            return
        figures, done = named(metrics, step)
        self._asked_again = time.monotonic() + PAUSE
        with _without_its_server(f"the figures of step {done}, and gets none for {PAUSE} s"):
            super().log_metrics(figures, done)
            self._asked_again = 0.0

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        with _without_its_server("the end of the run"):
            super().finalize(status)


@contextmanager
def _without_its_server(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # after the retries of MLflow's own
        logger.warning("mlflow did not take %s: %s", what, first_line(error))


def loggers(config: Config, done: int) -> list[Logger]:
    """Those that ``logger`` chose, begun, with the whole configuration as their hyper-parameters; none on other ranks.

    Args:
        config: a run's.
        done: the steps that are done: a resumed run goes on in the same place.

    Raises:
        ValueError: for one that cannot begin, as where its server does not answer.
    """
    made = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
    return [_begun(name, made[name], config, done) for name in config.logger.chosen] if is_first_rank() else []


def _begun(name: str, make: Any, config: Config, done: int) -> Logger:
    try:
        return make(config, done)
    except Exception as error:  # of the network, of a server, of an account
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"logger={name} cannot begin: {reason}; leave {name} out of logger, or {OFFLINE[name]}"
        ) from error


OFFLINE = {
    "tensorboard": "set another output",
    "wandb": "set WANDB_MODE=offline",
    "mlflow": "set logger.mlflow.tracking_uri",
}


def _tensorboard(config: Config, done: int) -> Logger:
    """TensorBoard shows no event of an earlier attempt from ``purge_step`` on."""
    folder = str(Path(config.output, "tensorboard"))
    made = _TensorBoard(folder, name="", version="", purge_step=done + 1 if config.resume else None)
    made.log_hyperparams(hyper_parameters(config))
    return made


def _wandb(config: Config, _: int) -> Logger:
    output = Path(config.output)
    arguments = wandb_arguments(config, known_ids(output).get("wandb") or secrets.token_hex(4))
    keep_id(output, "wandb", arguments["id"])
    made = _Wandb(save_dir=arguments.pop("dir"), **arguments)
    made.log_hyperparams(hyper_parameters(config))
    return made


def _mlflow(config: Config, _: int) -> Logger:
    """A resumed run keeps the parameters of its first attempt: MLflow changes none."""
    output, how, uri = Path(config.output), config.logger.mlflow, mlflow_uri(config)
    local = output / "mlflow"
    if uri.startswith(f"sqlite:///{local.absolute()}"):
        local.mkdir(exist_ok=True)
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    made = _MLflow(
        how.experiment,
        run_name=config.name,
        tracking_uri=uri,
        tags=dict(how.tags),
        artifact_location=str((local / "artifacts").absolute()) if local.exists() else None,
        run_id=(earlier := known_ids(output).get("mlflow")),
    )
    if earlier:
        made.experiment.update_run(earlier, status="RUNNING")
    else:
        keep_id(output, "mlflow", str(made.run_id))
        made.log_hyperparams(hyper_parameters(config))
    return made


def hyper_parameters(config: Config) -> dict[str, Any]:
    """Every key of a configuration, as it is typed, with a value that all loggers take."""
    leaves = {key: value for key, value in walk(config) if not hasattr(value, "__dataclass_fields__")}
    return {key: value if isinstance(value, (bool, int, float)) else str(value) for key, value in leaves.items()}


def close(failed: bool) -> None:
    """Ends the process's run at Weights & Biases, or the next run of this process would be logged there too."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish(exit_code=int(failed))
