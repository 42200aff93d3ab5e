"""A run as a job of Slurm: a script for ``sbatch``, or NeMo-Run's executor, from the same configuration.

One task a node, which is nemo_cdt/launch/node: it starts torchrun there. Slurm sends SIGTERM ``launcher.grace`` seconds
before a job's time is over, and when it preempts: the run saves and exits with 143, and the job is requeued, as it is
after a failure; not after a user's mistake, exit code 2, which ends a chain too.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from omegaconf import OmegaConf

from nemo_cdt.config import Config
from nemo_cdt.config.launcher import SQUASHED, Submit
from nemo_cdt.launch.names import environment, gpus, job_name


def render(config: Config) -> str:
    """The script, the commands that submit it, and the configuration that it reads."""
    if config.launcher.submit is Submit.sbatch:
        ids = [f"job{index + 1}" for index in range(config.launcher.chain)]
        commands = [submission(config, [f"${earlier}" for earlier in ids[:index]]) for index in range(len(ids))]
        text = script(config) + _commented([f"{i}=$({command})" for i, command in zip(ids, commands, strict=True)])
    else:
        from nemo_cdt.launch.slurm.nemo_run import dryrun

        text, commands = dryrun(config)
        text += _commented(commands)
    submitted = replace(config, launcher=replace(config.launcher, dryrun=False))
    as_yaml = OmegaConf.to_yaml(OmegaConf.structured(as_it_runs(submitted)))
    return text + _commented([f"{config_file(config)}:", *as_yaml.splitlines()])


def _commented(lines: Sequence[str]) -> str:
    return "\n" + "".join(f"# {line}".rstrip() + "\n" for line in lines)


def script(config: Config) -> str:
    """What ``sbatch`` takes, for people who do not use NeMo-Run."""
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    template.filters["quote"] = lambda value: shlex.quote(str(value))
    launcher, folder = config.launcher, logs(config)
    ours = {"job-name": job_name(config), "output": f"{folder}/{'%A_%a' if launcher.array else '%j'}.out"}
    flags = {"nodes": config.trainer.num_nodes, "ntasks-per-node": 1, "open-mode": "append", "requeue": True}
    theirs = {key.replace("_", "-"): value for key, value in resources(config).items()}
    return (
        template.get_template("job.sh.j2").render(
            flags=dict(sorted((ours | flags | theirs).items())),
            setup=setup(config),
            srun=[*srun(config), *_container(config)],
            command=command(config),
            requeues=launcher.requeues,
            cancel=cancellation([job_name(config)]) if launcher.chain > 1 else [],
        )
        + "\n"
    )


def submission(config: Config, after: Sequence[str]) -> str:
    """The command that submits the script: as it is, or to start where no job of ``after`` has reached the end.

    All of them, not the last: one that was not needed is CANCELLED, which is not ok either.
    """
    depends = f"{dependency(after)} --kill-on-invalid-dep=yes" if after else ""
    return f"sbatch --parsable{depends} {shlex.quote(f'{logs(config)}/job.sh')}"


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


def _container(config: Config) -> list[str]:
    """Pyxis' options; none without an image."""
    if (of := image(config)) is None:
        return []
    return [
        f"--container-image={of}",
        f"--container-mounts={','.join(mounts(config))}",
        f"--container-workdir={workdir(config)}",
    ]


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
    return [config.launcher.python, "-m", "nemo_cdt.launch.node", str(config_file(config))]


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
