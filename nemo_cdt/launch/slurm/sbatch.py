"""A run as a script for ``sbatch``, for people who do not use NeMo-Run."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nemo_cdt.config import Config
from nemo_cdt.launch.names import job_name
from nemo_cdt.launch.slurm import parts


def script(config: Config) -> str:
    """What ``sbatch`` takes."""
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    template.filters["quote"] = lambda value: shlex.quote(str(value))
    launcher, folder = config.launcher, parts.logs(config)
    ours = {"job-name": job_name(config), "output": f"{folder}/{'%A_%a' if launcher.array else '%j'}.out"}
    flags = {"nodes": config.trainer.num_nodes, "ntasks-per-node": 1, "open-mode": "append", "requeue": True}
    theirs = {key.replace("_", "-"): value for key, value in parts.resources(config).items()}
    return (
        template.get_template("job.sh.j2").render(
            flags=dict(sorted((ours | flags | theirs).items())),
            setup=parts.setup(config),
            srun=[*parts.srun(config), *_container(config)],
            command=parts.command(config),
            requeues=launcher.requeues,
            cancel=parts.cancellation([job_name(config)]) if launcher.chain > 1 else [],
        )
        + "\n"
    )


def submission(config: Config, after: Sequence[str]) -> str:
    """The command that submits the script: as it is, or to start where no job of ``after`` has reached the end.

    All of them, not the last: one that was not needed is CANCELLED, which is not ok either.
    """
    depends = f"{parts.dependency(after)} --kill-on-invalid-dep=yes" if after else ""
    return f"sbatch --parsable{depends} {shlex.quote(f'{parts.logs(config)}/job.sh')}"


def _container(config: Config) -> list[str]:
    """Pyxis' options; none without an image."""
    if (of := parts.image(config)) is None:
        return []
    return [
        f"--container-image={of}",
        f"--container-mounts={','.join(parts.mounts(config))}",
        f"--container-workdir={parts.workdir(config)}",
    ]
