"""Whether a run's loggers can be as they are set, and whether they are installed."""

import os
import re
from importlib import util
from pathlib import Path

from nemo_cdt.config import Config, walk
from nemo_cdt.config.loggers import Loggers
from nemo_cdt.validation.jobs import SECRET_VALUE
from nemo_cdt.validation.rules import require

WANDB_KEY = re.compile(r"\b([0-9a-f]{40}|wandb_v\d_\w{16,})\b")
INSTEAD = {
    "tensorboard": "remove it",
    "wandb": "run `wandb login`, or set WANDB_API_KEY in your shell",
    "mlflow": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in your shell",
}
"""Where a password may be, which must not get into OUTPUT/config.yaml."""


def check_loggers(config: Config) -> None:
    """Raise ValueError for settings of a logger that is not used, that hold a password, or that are empty."""
    default = dict(walk(Loggers()))
    for key, value in walk(config.logger):
        name, _, setting = key.partition(".")
        if not setting or setting == "use":
            continue
        patterns = [SECRET_VALUE, *([WANDB_KEY] if name == "wandb" else [])]  # elsewhere it may be a commit of git
        said = [each for each in _texts(value) if any(pattern.search(each) for pattern in patterns)]
        require(not said, f"logger.{key} holds a password, which OUTPUT/config.yaml would keep: {INSTEAD[name]}")
        require(
            value == default[key] or name in config.logger.chosen,
            f"logger.{key}={value} has no effect without logger={name}: add it, or remove logger.{key}",
        )
        require(value != "", f"logger.{key} is empty: set it, or leave it out")


def logger_blockers(config: Config) -> list[str]:
    """A line for each logger of the run whose package is not installed here, or that has no key; imports none."""
    needed = {"tensorboard": ["tensorboard"], "wandb": ["wandb"], "mlflow": ["mlflow"]}
    if mlflow_in_output(config):
        needed["mlflow"] += ["sqlalchemy", "alembic"]  # of its database
    missing = [
        f"logger={name} needs the package {package}, which is not installed: pip install 'nemo-cdt[{name}]', or leave "
        f"{name} out of logger"
        for name in config.logger.chosen
        for package in needed[name]
        if not _installed(package)
    ]
    if not missing and _has_no_key(config):
        missing.append(f"logger=wandb has no API key: {INSTEAD['wandb']}, or set logger.wandb.offline=true")
    return missing


def mlflow_in_output(config: Config) -> bool:
    """Whether no server of MLflow is named."""
    return not (config.logger.mlflow.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"))


def _has_no_key(config: Config) -> bool:
    """Whether a run would end, or ask at a terminal, where it begins at Weights & Biases."""
    how = config.logger.wandb
    online = how.use and not how.offline and os.environ.get("WANDB_MODE", "online") in ("online", "shared")
    known = any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
    files = [os.environ.get("NETRC", ""), "~/.netrc", "~/_netrc"]
    return online and not known and not any(Path(file).expanduser().is_file() for file in files)


def _installed(package: str) -> bool:
    spec = util.find_spec(package)
    return spec is not None and spec.origin is not None  # a folder ./wandb of earlier runs is no package


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [str(each) for item in value.items() for each in item]
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]
