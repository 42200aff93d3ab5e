"""A run's job, from submission to end. OUTPUT/job.json remembers it for `nemo-cdt status|logs|cancel OUTPUT`."""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from omegaconf import OmegaConf

from nemo_cdt.config import Config
from nemo_cdt.launcher import Launcher, LauncherName
from nemo_cdt.validation import require_sources, sources

JOB = "job.json"
POLL = 5.0
"""Seconds between two looks at a job."""


@dataclass(frozen=True)
class State:
    """``lines`` for people, told again when ``phase`` changes; ``ended`` and ``succeeded`` of the run as a whole."""

    lines: list[str]
    phase: str
    ended: bool
    succeeded: bool


@dataclass(frozen=True)
class Job:
    """What a submitted run is known by: job ids of Slurm in their order, one name in Kubernetes, or a process id."""

    launcher: Launcher
    output: str
    ids: list[str]


class Cluster(Protocol):
    """What runs jobs. It remembers how much of a log it has given."""

    def submit(self, config: Config) -> list[str]: ...
    def state(self, job: Job) -> State: ...
    def new_log(self, job: Job) -> str: ...
    def cancel(self, job: Job) -> None: ...


def cluster_of(launcher: Launcher) -> Cluster:
    match launcher.name:
        case LauncherName.slurm:
            from launchers.slurm_jobs import Slurm

            return Slurm(launcher)
        case LauncherName.kubernetes:
            from launchers.kubernetes_jobs import Kubernetes

            return Kubernetes(launcher)
        case LauncherName.local:
            from launchers.local_jobs import Local

            return Local()


def launch_job(config: Config) -> None:
    """Show what would run, or submit it; then follow it to its end, where ``launcher.follow`` says so.

    Raises:
        SystemExit: with 1 for a job that failed, 130 where Ctrl-C ended the following and not the job.
    """
    if config.launcher.dryrun:
        try:
            require_sources(config)
        except ValueError as error:
            print(f"note: as it stands this job would not start: {error}", file=sys.stderr)
        if config.launcher.elsewhere and (there := sources(config)):
            print(f"not checked here: {' '.join(f'{k}={v}' for k, v in there.items())}: the job does", file=sys.stderr)
        print(render(config), end="", flush=True)
        return
    cluster = cluster_of(config.launcher)
    job = Job(config.launcher, config.output, cluster.submit(config))
    remember(job)
    print(f"{config.name} is submitted: {' '.join(job.ids)}. nemo-cdt status|logs|cancel {config.output}", flush=True)
    if config.launcher.follow:
        follow(cluster, job)


def render(config: Config) -> str:
    """What :func:`launch_job` would run: a script and the commands that submit it, or manifests."""
    if config.launcher.name is LauncherName.slurm:
        from launchers import slurm

        return slurm.render(config)
    from launchers import kubernetes

    return kubernetes.render(config)


def follow(cluster: Cluster, job: Job) -> None:
    """Its log as it grows, and each change of its state, until it ends."""
    told = ""
    try:
        while True:
            state = cluster.state(job)
            sys.stdout.write(cluster.new_log(job))
            if state.phase != told:
                told = state.phase
                print(*state.lines, sep="\n", flush=True)
            if state.ended:
                break
            time.sleep(POLL)
    except KeyboardInterrupt:
        print(f"\nThe job goes on: nemo-cdt status|logs|cancel {job.output}", file=sys.stderr)
        raise SystemExit(130) from None
    if not state.succeeded:
        print(f"error: the job of output={job.output} failed, for the reason above", file=sys.stderr)
        raise SystemExit(1)


def status(run: Path) -> int:
    """Print the state of RUN's job; the exit code, 1 where it failed."""
    job = recall(run)
    state = cluster_of(job.launcher).state(job)
    print(*state.lines, sep="\n")
    return int(state.ended and not state.succeeded)


def logs(run: Path, following: bool) -> int:
    job = recall(run)
    cluster = cluster_of(job.launcher)
    if following:
        follow(cluster, job)
    else:
        sys.stdout.write(cluster.new_log(job))
    return 0


def cancel(run: Path) -> int:
    job = recall(run)
    cluster_of(job.launcher).cancel(job)
    print(f"{run} is cancelled: {' '.join(job.ids)}")
    return 0


def remember(job: Job) -> None:
    folder = Path(job.output)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{JOB}"
    partial.write_text(json.dumps(asdict(job), indent=1), encoding="utf-8")
    partial.replace(folder / JOB)


def recall(run: Path) -> Job:
    """Raises ValueError where RUN has no job."""
    try:
        found = json.loads((run / JOB).read_text(encoding="utf-8"))
        launcher = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Launcher()), found["launcher"]))
        assert isinstance(launcher, Launcher)
        return Job(launcher, found["output"], found["ids"])
    except FileNotFoundError as error:
        if not run.is_dir():
            raise ValueError(f"{run} does not exist: give the output of a run that a launcher has started") from error
        raise ValueError(f"{run} has no {JOB}: give the output of a run that a launcher has started") from error
    except (ValueError, KeyError) as error:
        raise ValueError(f"{run / JOB} is damaged: {error}") from error
