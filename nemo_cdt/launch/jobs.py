"""A run's job, from submission to end. OUTPUT/job.json remembers it for `nemo-cdt status|logs|cancel OUTPUT`."""

import sys
import time
import warnings
from pathlib import Path

from nemo_cdt.config import Config, DataName
from nemo_cdt.config.launcher import Launcher, LauncherName
from nemo_cdt.launch.job import Cluster, Job
from nemo_cdt.launch.kubernetes.manifests import render as render_manifests
from nemo_cdt.launch.remembered import JOB, recall, remember
from nemo_cdt.launch.site import site_file
from nemo_cdt.launch.slurm.parts import image as slurm_image
from nemo_cdt.launch.slurm.render import placeholder
from nemo_cdt.launch.slurm.render import render as render_slurm
from nemo_cdt.utils.noise import PYNVML
from nemo_cdt.validation import inputs, missing_keys, require_sources

POLL = 5.0
"""Seconds between two looks at a job."""


def cluster_of(launcher: Launcher) -> Cluster:
    match launcher.name:
        case LauncherName.slurm:
            from nemo_cdt.launch.slurm.cluster import Slurm

            return Slurm(launcher)
        case LauncherName.kubernetes:
            from nemo_cdt.launch.kubernetes.cluster import Kubernetes

            return Kubernetes(launcher)
        case LauncherName.local:
            from nemo_cdt.launch.local.cluster import Local

            return Local()


def launch_job(config: Config) -> None:
    """Show what would run, or submit it; then follow it to its end, where ``launcher.follow`` says so.

    Raises:
        SystemExit: with 1 for a job that failed, 130 where Ctrl-C ended the following and not the job.
    """
    warnings.filterwarnings("ignore", PYNVML)  # transformers and NeMo-Run import torch
    for note in notes(config):
        print(f"note: {note}", file=sys.stderr)
    if config.launcher.dryrun:
        print(render(config), end="", flush=True)
        return
    require_data(config)
    cluster = cluster_of(config.launcher)
    job = Job(config.launcher, config.output, cluster.submit(config))
    remember(job)
    print(f"{config.name} is submitted: {' '.join(job.ids)}. nemo-cdt status|logs|cancel {config.output}", flush=True)
    if config.launcher.follow:
        follow(cluster, job)


def notes(config: Config) -> list[str]:
    """What is not as it should be, or cannot be told here, and does not keep the job from being shown or submitted."""
    launcher, there = config.launcher, inputs(config)
    found = [
        f"launcher.{key}={value} has no effect without launcher.{needed}"
        for key, needed in (("mounts", "image"), ("user", "host"), ("identity", "host"))
        if (value := getattr(launcher, key)) and getattr(launcher, needed) is None
    ]
    if launcher.elsewhere and there:
        found.append(f"not checked here: {' '.join(f'{k}={v}' for k, v in there.items())}: the job does")
    image = slurm_image(config) if launcher.name is LauncherName.slurm else None
    if image and image.startswith("/") and not launcher.elsewhere and not Path(image).exists():
        found.append(f"launcher.image={image} is not on this machine: is it on the nodes?")
    if launcher.dryrun:
        found += [
            f"launcher.{key} is missing, and the script has {placeholder(key)} in its place: set {key} in "
            f"{site_file(config)}, or launcher.{key} here, to submit it"
            for key in missing_keys(launcher)
        ]
        missing = {} if launcher.elsewhere else {key: path for key, path in there.items() if not Path(path).exists()}
        lacking = [f"{key}={path} does not exist" for key, path in missing.items()]
        try:
            require_sources(config)
            require_data(config)
        except ValueError as error:
            lacking += [] if str(error).partition("=")[0] in missing else [str(error)]
        found += [f"as it stands this job would not start: {error}" for error in lacking]
    return found


def require_data(config: Config) -> None:
    """Raise ValueError where questions do not fit into a row; where their tokenizer is elsewhere, the job finds out."""
    if config.data.name is DataName.multihop and (config.tokenizer == "byte" or Path(config.tokenizer).is_dir()):
        from nemo_cdt.data.split import require_room
        from nemo_cdt.data.tokenizer import load_tokenizer

        require_room(config.data, load_tokenizer(config.tokenizer))


def require_idle(output: str) -> None:
    """Raise ValueError where a job that was submitted from here still trains into OUTPUT, or will."""
    if not Path(output, JOB).exists():
        return
    job = recall(Path(output))
    if cluster_of(job.launcher).is_alive(job):
        raise ValueError(
            f"output={output} is in use by job {' '.join(job.ids)}: nemo-cdt cancel {output}, or set another output"
        )


def render(config: Config) -> str:
    """What :func:`launch_job` would run: a script and the commands that submit it, or manifests."""
    if config.launcher.name is LauncherName.slurm:
        return render_slurm(config)
    return render_manifests(config)


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
        words = f"the job of output={job.output} ended before its run did, as told above"
        print(f"error: {': '.join(filter(None, (words, state.saved)))}", file=sys.stderr)
        raise SystemExit(1)


def status(run: Path) -> int:
    """Print the state of RUN's job; the exit code, 1 where it failed."""
    job = recall(run)
    state = cluster_of(job.launcher).state(job)
    print(*filter(None, (*state.lines, state.saved)), sep="\n")
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
