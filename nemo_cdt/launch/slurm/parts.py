"""What a job of Slurm is made of, whether ``sbatch`` takes our own script or NeMo-Run writes one."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_cdt.config import Config
from nemo_cdt.config.launcher import SQUASHED
from nemo_cdt.launch.names import NODE, environment, gpus


def dependency(after: Sequence[str]) -> str:
    return f" --dependency=afternotok:{':'.join(after)}" if after else ""


def cancellation(names: Sequence[str]) -> list[str]:
    """Shell lines that cancel the jobs of a chain that have not begun."""
    return [f"scancel --quiet --me --state=PENDING --name={name}" for name in names]


def resources(config: Config) -> dict[str, Any]:
    """Flags of ``sbatch`` and fields of NeMo-Run's executor, by the executor's names; without those that are unset."""
    launcher = config.launcher
    wanted = {
        "account": launcher.account,
        "partition": launcher.partition,
        "qos": launcher.qos,
        "time": launcher.time,
        "constraint": launcher.constraint,
        "exclude": launcher.exclude,
        "mem": launcher.mem,
        "cpus_per_task": launcher.cpus_per_task,
        "exclusive": launcher.exclusive,
        "gpus_per_node": gpus(config) if launcher.request_gpus else None,
        "array": launcher.array,
        "signal": f"TERM@{launcher.grace}",
    }
    return {key: value for key, value in wanted.items() if value}


def setup(config: Config) -> list[str]:
    """Shell lines before ``srun``: what the site needs, the environment, the folder."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment(config).items()]
    return [*config.launcher.setup, *exports, f"cd {shlex.quote(workdir(config))} || exit 1"]


def srun(config: Config) -> list[str]:
    """A node that saved and left must not end another one that still saves; and srun inherits no CPUs of the job."""
    cpus = config.launcher.cpus_per_task
    return ["--kill-on-bad-exit=0", f"--wait={config.launcher.grace}", *([f"--cpus-per-task={cpus}"] if cpus else [])]


def image(config: Config) -> str | None:
    """``launcher.image`` as Pyxis has it: a file from the root on, else it asks a registry; one that is not Docker's
    has a # behind it."""
    given = config.launcher.image
    if given is None or given.startswith("/"):
        return given
    if given.endswith(SQUASHED):
        return str(Path(workdir(config), given))
    name = given.removeprefix("docker://")
    registry, slash, rest = name.partition("/")
    return f"{registry}#{rest}" if slash and not re.search("#|://", name) and re.search("[.:]", registry) else given


def mounts(config: Config) -> list[str]:
    """The site's, and the folder in which the run is."""
    folder = workdir(config)
    return [*config.launcher.mounts, f"{folder}:{folder}"]


def command(config: Config) -> list[str]:
    return [config.launcher.python, "-m", NODE, str(config_file(config))]


def workdir(config: Config) -> str:
    """Where relative paths begin, for the job; on a login node that is this folder."""
    return str(config.launcher.workdir if config.launcher.elsewhere else Path.cwd())


def output(config: Config) -> Path:
    return Path(workdir(config), config.output)


def logs(config: Config) -> Path:
    """Of the scheduler: the script too."""
    return output(config) / "slurm"


def config_file(config: Config) -> Path:
    return output(config) / "config.yaml"


def as_it_runs(config: Config) -> Config:
    """What the job reads: it goes on from what an earlier attempt has saved."""
    return replace(config, resume=True, launcher=replace(config.launcher, workdir=workdir(config)))
