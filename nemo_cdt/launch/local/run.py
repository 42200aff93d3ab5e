"""Train with this machine's processes: this one alone, or several by NeMo-Run's local executor and torchrun."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from nemo_cdt.checkpoint.run_id import RUN_ID
from nemo_cdt.config import Config, Framework, save
from nemo_cdt.describe import describe
from nemo_cdt.doctor import training_blockers
from nemo_cdt.frameworks import framework_of
from nemo_cdt.launch.baseline import with_baseline
from nemo_cdt.launch.home import nemo_run_home
from nemo_cdt.launch.job import Job
from nemo_cdt.launch.local.cluster import this_process
from nemo_cdt.launch.remembered import JOB, remember
from nemo_cdt.tracking import IDS, send_report
from nemo_cdt.utils.atomic_write import traceless
from nemo_cdt.utils.lock import held
from nemo_cdt.utils.noise import PYNVML
from nemo_cdt.utils.parent_watchdog import LAUNCHER
from nemo_cdt.utils.sigterm import told_by_sigterm
from nemo_cdt.utils.user_errors import FAILED, fail
from nemo_cdt.validation import check_output, check_unused, logger_blockers

TRAIN = "nemo_cdt.training"
BEFORE_TRAINING = (
    *("init", ".init.lock", "tokenizer", ".tokenizer.lock", "key_tokens.npz", ".key_tokens.lock", "index"),
    *("tensorboard", "wandb", "mlflow", IDS, RUN_ID, "versions.json", "data.json"),
    *("nemo_*log*.txt", "lightning_logs*.txt", "cmd-args*.log", "git-info*.log"),
)
"""In OUTPUT, what a start writes before it knows that it can train, for rows are read as they are needed."""


def launch_local(config: Config) -> None:
    """Train ``config``, then its ``compare_to``; write the report; print what OUTPUT holds.

    Raises:
        ValueError: where another run is in OUTPUT, or has been there since the configuration was validated.
    """
    if blockers := [*training_blockers(framework_of(config)), *logger_blockers(config)]:
        fail(*blockers)
    with told_by_sigterm(), held(Path(config.output)):
        check_output(config)
        check_unused(config)
        Path(config.output, "study.json").unlink(missing_ok=True)  # of an earlier attempt: it is not of this model
        _train(config)
        for beside in with_baseline(config)[1:]:
            with held(Path(beside.output)):
                _train(beside)
        if config.study.samples:
            from nemo_cdt.analysis.study import study  # imports torch and transformers

            study(config)
        if config.report:
            from nemo_cdt.report import write_report

            send_report(config, write_report(Path(config.output)))
        print(f"\n{config.name} is done. {config.output} holds", *_table(_written(config)), sep="\n  ", flush=True)


def _train(config: Config) -> None:
    """Train one run; where it fails before it wrote anything, OUTPUT is as it was."""
    file = Path(config.output, "config.yaml")
    with traceless(file.parent, {file.name, JOB, *BEFORE_TRAINING}):
        save(config, file)
        remember(Job(config.launcher, config.output, this_process()))
        print(f"\n{config.name}, in {config.output}", *_table(describe(config)), sep="\n  ", flush=True)
        if config.trainer.world_size == 1 and not config.launcher.max_restarts:
            from nemo_cdt.training import train

            train(config)
        else:
            started = _by_torchrun if framework_of(config) is Framework.bridge else _train_in_processes
            started(file, config.trainer.devices, config.launcher.max_restarts)


def _train_in_processes(file: Path, devices: int, max_restarts: int) -> None:
    """SystemExit where they fail, with 2 for the mistake of a user that one of them names, else with 1; and after a
    signal, with 128 more than its number."""
    records = Path(tempfile.mkdtemp(dir=nemo_run_home().name))
    import nemo_run

    variables = _environment() | {"PET_MAX_RESTARTS": str(max_restarts)}  # torchrun's --max-restarts
    executor = nemo_run.LocalExecutor(ntasks_per_node=devices, launcher="torchrun", env_vars=variables)
    script = nemo_run.Script(path=TRAIN, m=True, entrypoint="python", args=[str(file)])
    experiment = nemo_run.Experiment(
        "train", executor, log_level="ERROR", base_dir=str(records), clean_mode=True, skip_status_at_exit=True
    )
    with _signals_for_the_ranks(restarted=max_restarts > 0) as received, experiment:
        experiment.add(script, name="train")
        experiment.run(tail_logs=True)
    succeeded = experiment.jobs[0].state.name == "SUCCEEDED"
    if not succeeded and (mistake := _mistake(records)):
        fail(mistake)
    if received:
        name = signal.Signals(received[0]).name
        print(f"ended by {name}, as asked: what torchrun calls a failure above is that end", file=sys.stderr)
        raise SystemExit(128 + received[0])
    if not succeeded:
        print(f"error: training in {devices} processes failed, for the reason above", file=sys.stderr)
        raise SystemExit(1)


def _by_torchrun(file: Path, devices: int, max_restarts: int) -> None:
    """The same where there is no NeMo-Run; a rank has then said by itself what was wrong."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    command += [f"--max-restarts={max_restarts}", "-m", TRAIN, str(file)]
    with _signals_for_the_ranks(restarted=max_restarts > 0) as received:
        code = subprocess.Popen(command, env=os.environ | _environment(), start_new_session=True).wait()
    if received:
        raise SystemExit(128 + received[0])
    if code:
        print(f"error: training in {devices} processes failed, for the reason above", file=sys.stderr)
        raise SystemExit(1)


def _mistake(logs: Path) -> str | None:
    """The user's mistake that a rank reported before torchrun told, at length, that the rank had ended.

    A training that failed is none: it is told above.
    """
    for log in logs.rglob("combined.log"):
        if found := re.search(
            rf"^\[default\d+\]:error: (?!{FAILED})(.+)$", log.read_text(errors="replace"), re.MULTILINE
        ):
            return found.group(1)
    return None


def _environment() -> dict[str, str]:
    """torchrun of this environment, activated or not, and without its log of every step it takes."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {
        "PATH": path,
        "LOGLEVEL": "ERROR",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        LAUNCHER: str(os.getpid()),
        "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", f"ignore:{PYNVML}"),
    }


@contextmanager
def _signals_for_the_ranks(restarted: bool) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM reach the ranks, which end as one process does; a second signal kills them.

    torchrun and its ranks have sessions of their own, so nothing else tells them. Told by torchx or torchrun they would
    have 10 or 30 seconds to save. Where ranks are ``restarted`` it is torchrun that must be told all the same: it would
    take their end for a failure. Yields the signals received.
    """
    received: list[int] = []

    def on_signal(signum: int, _frame: object) -> None:
        received.append(signum)
        torchrun = {*filter(_leads_a_session, psutil.Process().children())}
        ranks = {*filter(_leads_a_session, psutil.Process().children(recursive=True))} - torchrun
        for process in torchrun if restarted or not ranks else ranks:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signum if len(received) == 1 else signal.SIGKILL)
        if not torchrun:
            raise SystemExit(128 + signum)

    before = {signum: signal.signal(signum, on_signal) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _leads_a_session(process: psutil.Process) -> bool:
    with suppress(ProcessLookupError):
        return os.getsid(process.pid) == process.pid
    return False


CONTENTS = {
    "report.html": "the report: pictures and a token heat map, for any browser",
    "hf": "the trained model, for transformers.AutoModelForCausalLM",
    "checkpoints": "distributed checkpoints, Megatron's",
    "init": "the weights the run started from, to which LoRA's checkpoints refer",
    "metrics.jsonl": "the figures of every step",
    "tensorboard": "the same figures, for TensorBoard",
    "wandb": "the same figures, as Weights & Biases keeps them",
    "mlflow": "the same figures, for `mlflow ui --backend-store-uri sqlite:///OUTPUT/mlflow/mlflow.db`",
    "profile": "where the time of one step went: traces for ui.perfetto.dev, tables",
    "sample.json": "what detection made of one document",
    "study.json": "which method finds the facts, and answers before and after",
    "baseline": "the run that this one is compared to",
    "config.yaml": "the whole configuration",
    "versions.json": "the versions of the packages the run was made with",
    "data.json": "the checksums of the data the run trained on",
    "loggers.yaml": "the ids of this run at Weights & Biases and MLflow",
    "job.json": "the job, for nemo-cdt status, logs and cancel",
    "tokenizer": "the tokenizer of the checkpoints",
    "key_tokens.npz": "LongPPL's key tokens of the validation rows",
    "index": "the order of books with data=pretrain, as Megatron keeps it",
    "slurm": "the scripts and logs of Slurm jobs",
    "ft_state.json": "the state of nvidia-resiliency-ext, which watches for hanging ranks",
    "lightning_logs.txt": "Lightning's log",
    "cmd-args.log": "NeMo's note of the command line",
    "git-info.log": "NeMo's note of the commit",
    "nemo_error_log.txt": "NeMo's warnings and errors",
}
"""What may be in OUTPUT, the most interesting first."""


def _written(config: Config) -> dict[str, str]:
    """What is in OUTPUT, and what it is; NeMo's own logs last."""
    found = {path.name: f"{path}{'/' * path.is_dir()}" for path in sorted(Path(config.output).iterdir())}
    ours = {found.pop(name): what for name, what in CONTENTS.items() if name in found}
    rest = {
        path: "NeMo's log" * name.startswith("nemo_log_") for name, path in found.items() if not name.startswith(".")
    }
    return {path: what.replace("OUTPUT", config.output) for path, what in (ours | rest).items()}


def _table(rows: dict[str, str]) -> list[str]:
    width = max(map(len, rows), default=0)
    return [f"{name:{width}}  {value}".rstrip() for name, value in rows.items()]
