"""A run as a job through NeMo-Run's SlurmExecutor, on a login node or over SSH.

Known of NeMo-Run 0.11: it writes ``env_vars`` unquoted and in capitals, so the environment is part of ``setup_lines``;
it requeues after any failure, ``retries`` times, so those lines have an ``srun`` that sees a user's mistake; its script
echoes itself twice, a secret that a line fetches too; with its torchrun launcher every job meets at one port.
"""

import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_cdt.config import Config
from nemo_cdt.launch.home import nemo_run_home
from nemo_cdt.launch.names import NODE, job_name
from nemo_cdt.launch.slurm import parts
from nemo_cdt.launch.slurm.login import tunnel

if TYPE_CHECKING:
    from nemo_run import Experiment, SlurmExecutor

TASK = "train"

SRUN = """\
set +vx
srun() {{  # after a user's mistake nothing starts again
  command srun "$@"
  local code=$?
  if [ "$code" -eq 2 ]; then
    TORCHX_MAX_RETRIES=0{cancel}
  fi
  return "$code"
}}"""


def dryrun(config: Config) -> tuple[str, list[str]]:
    """The scripts that NeMo-Run would submit, in their order, and by which commands.

    It puts each into a folder named by the time of its submission, which is not known here.
    """
    with _experiment(config) as (experiment, folder):
        experiment.dryrun(log=False, delete_exp_dir=False)
        files = {file.name: file for file in folder.rglob("*_sbatch.sh")}
        scripts = [files[f"{task}_sbatch.sh"] for task in _tasks(config)]
        text = "\n".join(f"{file.read_text(encoding='utf-8').rstrip()}\n" for file in scripts)
        names = [str(parts.logs(config) / file.relative_to(folder)) for file in scripts]
    commands = []
    for index, name in enumerate(names):
        depends = parts.dependency([f"$job{earlier + 1}" for earlier in range(index)])
        commands.append(f"job{index + 1}=$(sbatch --requeue --parsable{depends} {shlex.quote(name)})")
    return text.replace(str(folder), str(parts.logs(config))), commands


def submit(config: Config) -> list[str]:
    """Job ids, in the order of the chain. Raises ValueError for what Slurm refuses."""
    from invoke.exceptions import UnexpectedExit

    with _experiment(config) as (experiment, _):
        try:
            experiment.run(detach=True)
        except UnexpectedExit as error:
            raise ValueError(f"sbatch failed: {error.result.stderr.strip()}") from error
        return [job.handle.split("/")[-1] for job in experiment.jobs]


@contextmanager
def _experiment(config: Config) -> "Iterator[tuple[Experiment, Path]]":
    """The chain's jobs, not yet submitted, and the folder of NeMo-Run's files about them."""
    nemo_run_home()
    try:
        import nemo_run
    except ModuleNotFoundError as error:
        raise ValueError(
            f"launcher.submit=nemo_run needs NeMo-Run ({error}): pip install 'nemo-cdt[nemo]', or set "
            "launcher.submit=sbatch"
        ) from error
    _require_no_rundir(config)
    launcher, title, tasks = config.launcher, job_name(config), _tasks(config)
    with tempfile.TemporaryDirectory(prefix="nemo_cdt-") as temporary:
        dry, away = launcher.dryrun, launcher.host is not None
        folder = Path(temporary) if dry or away else parts.logs(config)
        experiment = nemo_run.Experiment(
            title,
            id=title if dry else None,
            base_dir=str(folder),
            log_level="ERROR",
            clean_mode=True,
            enable_goodbye_message=False,
            skip_status_at_exit=True,
        )
        with experiment:
            for index in range(launcher.chain):
                experiment.add(
                    nemo_run.Script(path=NODE, m=True, entrypoint=launcher.python, args=parts.command(config)[3:]),
                    executor=_executor(config, folder),
                    name=tasks[index],
                    dependencies=tasks[:index] or None,
                )
            yield experiment, folder


def _require_no_rundir(config: Config) -> None:
    """Raise ValueError for a path that NeMo-Run would garble: without a container it takes /nemo_run for its folder."""
    rundir, paths = "/nemo_run", [config.launcher.python, str(parts.config_file(config)), *parts.setup(config)]
    if config.launcher.image is None and (garbled := [path for path in paths if rundir in path]):
        raise ValueError(
            f"launcher.submit=nemo_run puts another folder for {rundir} into {garbled[0]}: set launcher.submit=sbatch"
        )


def _tasks(config: Config) -> list[str]:
    """NeMo-Run calls a job by the run's name, a point and one of these."""
    count = config.launcher.chain
    return [f"{TASK}-{index + 1}" for index in range(count)] if count > 1 else [TASK]


def _srun(config: Config) -> str:
    rest = [f"{job_name(config)}.{task}" for task in _tasks(config)[1:]]
    return SRUN.format(cancel="".join(f"\n    {line}" for line in parts.cancellation(rest)))


def _executor(config: Config, folder: Path) -> "SlurmExecutor":
    import nemo_run

    launcher = config.launcher
    return nemo_run.SlurmExecutor(
        **parts.resources(config) | {"account": launcher.account or None, "time": launcher.time},
        nodes=config.trainer.num_nodes,
        ntasks_per_node=1,
        job_name_prefix=f"{job_name(config)}.",
        container_image=parts.image(config),
        container_mounts=parts.mounts(config) if launcher.image else [],
        setup_lines="\n".join([_srun(config), *parts.setup(config)]),
        srun_args=parts.srun(config),
        retries=launcher.requeues,
        packager=nemo_run.Packager(),
        tunnel=tunnel(launcher, _job_dir(config, folder)),
        dependency_type="afternotok",
        additional_parameters={"kill_on_invalid_dep": "yes"} if launcher.chain > 1 else None,
        poll_estimated_start_time=False,
    )


def _job_dir(config: Config, folder: Path) -> str:
    """Where NeMo-Run puts a job's files on the cluster; on this machine they must be where it has made them."""
    return str(parts.logs(config) if config.launcher.elsewhere else folder / "experiments")
