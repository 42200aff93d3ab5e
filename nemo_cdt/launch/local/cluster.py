"""A run of this machine's processes, seen from another terminal."""

import os
import signal
from pathlib import Path

import psutil

from nemo_cdt.checkpoint.steps import step_of
from nemo_cdt.config import Config, load
from nemo_cdt.launch.job import Job, State
from nemo_cdt.utils.lock import holder
from nemo_cdt.utils.reading import blamed_on, read_bytes


def this_process() -> list[str]:
    """Its id and when it started, as a job's ids."""
    return [str(os.getpid()), str(psutil.Process().create_time())]


class Local:
    def __init__(self) -> None:
        self._read = 0

    def submit(self, config: Config) -> list[str]:
        raise NotImplementedError("launch_local runs it")

    def is_alive(self, job: Job) -> bool:
        return self._process(job) is not None

    def state(self, job: Job) -> State:
        running, config = self._process(job) is not None, load(Path(job.output, "config.yaml"))
        last = Path(job.output, "checkpoints/last")
        with blamed_on(last):
            saved = step_of(Path(os.readlink(last))) if last.is_symlink() else 0
        done = saved == config.trainer.max_steps
        phase = f"process {job.ids[0]} runs" if running else "done" if done else "ended early"
        line = f"{job.output}: {phase}, {saved} of {config.trainer.max_steps} steps saved"
        return State([line], phase, not running, done)

    def new_log(self, job: Job) -> str:
        """A local run writes its log to its terminal; what is in a file are its metrics."""
        file = Path(job.output, "metrics.jsonl")
        whole = read_bytes(file) if file.exists() else b""
        end = whole.rfind(b"\n") + 1
        new, self._read = whole[self._read : end], end
        return new.decode("utf-8", "replace")

    def cancel(self, job: Job) -> None:
        """As Ctrl-C's kinder sister: it saves first."""
        process = self._process(job)
        if process is None:
            raise ValueError(f"{job.output} does not run")
        process.send_signal(signal.SIGTERM)

    def _process(self, job: Job) -> psutil.Process | None:
        """None where it has ended; another process may have its id by now.

        What job.json says is believed of a process only that the kernel calls the holder of this OUTPUT's lock.
        """
        identity, started = job.ids
        if holder(Path(job.output)) != int(identity):
            return None
        try:
            process = psutil.Process(int(identity))
            return process if str(process.create_time()) == started and process.is_running() else None
        except psutil.NoSuchProcess:
            return None
