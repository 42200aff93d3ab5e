"""Train with this machine's processes: one as a plain child, several by NeMo-Run's local executor and torchrun.

A run is always a child process. NeMo and Megatron keep global state that outlives a trainer, so the points of a
sweep and the run of ``compare_to`` could not follow one another in one process.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nemo_cdt.config import Config, Export, save
from nemo_cdt.doctor import training_blockers
from nemo_cdt.mistakes import fail

TRAIN = "nemo_cdt.nemo.train"


def launch_local(config: Config) -> None:
    """Train ``config``, then its ``compare_to``; write the report; print what OUTPUT holds."""
    for blocker in training_blockers():
        fail(blocker)
    for run in [config, *_baseline(config)]:
        _train(run)
    if config.report:
        from nemo_cdt.report import write_report

        write_report(Path(config.output))
    print(f"\n{config.name} is done. It wrote:", *_written(Path(config.output)), sep="\n  ", flush=True)


def _baseline(config: Config) -> list[Config]:
    """The run that differs from ``config`` in its objective alone, if one is asked for."""
    if config.compare_to is None:
        return []
    return [
        replace(
            config,
            name=f"{config.name}/{config.compare_to}",
            output=str(Path(config.output, "baseline")),
            objective=replace(config.objective, name=config.compare_to),
            compare_to=None,
            report=False,
            export=Export(),
        )
    ]


def _train(config: Config) -> None:
    """Train one run in child processes; SystemExit with their exit code where they fail."""
    file = Path(config.output, "config.yaml")
    save(config, file)
    status = _one(file) if config.trainer.world_size == 1 else _several(file, config.trainer.devices)
    if status != 0:
        _forget(file)
        raise SystemExit(status)


def _one(file: Path) -> int:
    process = subprocess.Popen([sys.executable, "-m", TRAIN, file], start_new_session=True)
    with _passing_signals(process.send_signal):
        status = process.wait()
    if status < 0:
        print(f"error: training was killed by {signal.Signals(-status).name}", file=sys.stderr)
    return abs(status)


def _several(file: Path, devices: int) -> int:
    with tempfile.TemporaryDirectory(prefix="nemo_run-") as home:
        os.environ["NEMORUN_HOME"] = home  # read at import; the default is in the user's home folder
        import nemo_run

        executor = nemo_run.LocalExecutor(ntasks_per_node=devices, launcher="torchrun", env_vars=_environment())
        script = nemo_run.Script(path=TRAIN, m=True, entrypoint="python", args=[str(file)])
        experiment = nemo_run.Experiment(
            "train", executor, log_level="ERROR", base_dir=home, clean_mode=True, skip_status_at_exit=True
        )
        with _passing_signals(lambda _: experiment.cancel("train")), experiment:
            experiment.add(script, name="train")
            experiment.run(tail_logs=True)
        if experiment.jobs[0].state.name == "SUCCEEDED":
            return 0
    print(f"error: training in {devices} processes failed, for the reason above", file=sys.stderr)
    return 1


def _environment() -> dict[str, str]:
    """torchrun of this environment, activated or not, and without its log of every step it takes."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {"PATH": path, "LOGLEVEL": "ERROR", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


@contextmanager
def _passing_signals(send: Callable[[int], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to the children, which are in sessions of their own; then this process ends too."""
    received: list[int] = []

    def pass_on(signum: int, _frame: object) -> None:
        received.append(signum)
        send(signum)

    before = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if received:
        raise SystemExit(128 + received[0])


def _forget(file: Path) -> None:
    """A run that failed before it wrote anything leaves OUTPUT free for the next."""
    if list(file.parent.iterdir()) == [file]:
        file.unlink()
        file.parent.rmdir()


def _written(output: Path) -> list[str]:
    return [f"{path}{'/' * path.is_dir()}" for path in sorted(output.iterdir()) if not path.name.startswith(".")]
