"""Jobs of Slurm, by its own commands: on this machine, or on a login node over SSH."""

import csv
import re
import shlex
import tempfile
from pathlib import Path

from nemo_cdt.config import Config, save
from nemo_cdt.config.launcher import Launcher, Submit
from nemo_cdt.launch.home import nemo_run_home
from nemo_cdt.launch.job import Job, State
from nemo_cdt.launch.slurm import nemo_run, parts, sbatch
from nemo_cdt.launch.slurm.login import connected

FIELDS = "JobID,State,Reason,ExitCode,Elapsed,NodeList"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}
"""States after which Slurm runs a job no more. PREEMPTED is none: it comes back."""


class Slurm:
    def __init__(self, launcher: Launcher) -> None:
        nemo_run_home()
        self._tunnel = connected(launcher)
        self._read: dict[str, int] = {}  # bytes of each log file

    def submit(self, config: Config) -> list[str]:
        """Raises ValueError where OUTPUT holds a run that this one does not resume, and for what Slurm refuses.

        Then nothing is left of it, and what was there before still is.
        """
        made, before = self._make(parts.logs(config)), set[str]()
        try:
            if not config.resume:
                self._claim(config)
                before = self._find(config)
        except BaseException:
            self._remove([], made)
            raise
        try:
            self._write(config)
            return self._submit(config)
        except BaseException:
            if not config.resume:
                new = [*(self._find(config) - before), str(parts.config_file(config))]
                self._remove(sorted(new, key=len, reverse=True), made)
            raise

    def _make(self, folder: Path) -> list[str]:
        """Makes it, and what it lies in; those that were not there, the innermost first."""
        shown = 'for each in "$@"; do test -e "$each" || echo "$each"; done'
        folders = " ".join(shlex.quote(str(each)) for each in (folder, *folder.parents))
        missing = self._must(f"sh -c {shlex.quote(shown)} sh {folders}").splitlines()
        self._must(f"mkdir -p -- {shlex.quote(str(folder))}")
        return missing

    def _claim(self, config: Config) -> None:
        """Of two submissions at a time one makes the file, and goes on."""
        file = shlex.quote(str(parts.config_file(config)))
        if self._run(f"test -e {file}", may_fail=True) is not None:
            raise ValueError(f"output={config.output} already holds a run: set resume=true, or another output")
        self._must(f"sh -C -c {shlex.quote(f': > {file}')}")

    def _find(self, config: Config) -> set[str]:
        """What is in the folder of OUTPUT that is for Slurm."""
        folder = shlex.quote(str(parts.logs(config)))
        return {*filter(None, (self._run(f"find {folder} -mindepth 1 -print0", may_fail=True) or "").split("\0"))}

    def _remove(self, paths: list[str], folders: list[str]) -> None:
        """Files, and folders that are empty; each folder after what is in it."""
        words = " ".join(map(shlex.quote, [*paths, *folders]))
        each = 'for each in "$@"; do rm -f -- "$each" || rmdir -- "$each"; done'
        self._run(f"sh -c {shlex.quote(each)} sh {words}", may_fail=True)

    def _write(self, config: Config) -> None:
        """Into OUTPUT, on the cluster."""
        with tempfile.TemporaryDirectory(prefix="nemo_cdt-") as local:
            save(parts.as_it_runs(config), Path(local, "config.yaml"))
            Path(local, "job.sh").write_text(sbatch.script(config), encoding="utf-8")
            self._tunnel.put(f"{local}/config.yaml", str(parts.config_file(config)))
            self._tunnel.put(f"{local}/job.sh", str(parts.logs(config) / "job.sh"))

    def _submit(self, config: Config) -> list[str]:
        if config.launcher.submit is Submit.nemo_run:
            return nemo_run.submit(config)
        ids: list[str] = []
        try:
            for _ in range(config.launcher.chain):
                # on several clusters of one Slurm it answers ID;CLUSTER
                ids.append(self._must(sbatch.submission(config, ids)).split(";")[0].strip())
        except BaseException:
            if ids:  # the chain's first jobs would begin without the rest, and without their files
                self._run(f"scancel {' '.join(map(shlex.quote, ids))}", may_fail=True)
            raise
        return ids

    def is_alive(self, job: Job) -> bool:
        """Whether the queue has one of its jobs: waiting, running or about to come back."""
        queued = self._run(f"squeue --noheader --format=%A --jobs={_listed(job)}", may_fail=True)
        return bool((queued or "").strip())  # it fails for a job of long ago

    def state(self, job: Job) -> State:
        """From Slurm's accounting; of a job that it does not know yet, the queue."""
        table = self._must(f"sacct --allocations --parsable2 --format={FIELDS} --jobs={_listed(job)}")
        rows = list(csv.DictReader(table.splitlines(), delimiter="|"))
        states = {row["JobID"]: row["State"].split()[0] for row in rows}
        lines = [
            f"job {row['JobID']}: {row['State']}, {row['Elapsed']}, on {row['NodeList']}"
            + (f", exit code {row['ExitCode']}" if states[row["JobID"]] in ENDED else "")
            + (f", {row['Reason']}" if states[row["JobID"]] == "PENDING" and row["Reason"] != "None" else "")
            for row in rows
        ]
        one_is_enough = len(job.ids) > 1  # of a chain
        succeeded = (any if one_is_enough else all)(state == "COMPLETED" for state in states.values()) and bool(states)
        # accounting may know nothing of a job that was cancelled before its turn, or was only just submitted
        ended = bool(states) and all(state in ENDED for state in states.values()) and not self.is_alive(job)
        ended |= one_is_enough and succeeded
        lines = lines or [f"job {' '.join(job.ids)}: Slurm does not know it yet"]
        phase = ", ".join(f"{identity} {state}" for identity, state in states.items())
        return State(lines, phase, ended, succeeded, saved="" if succeeded or not ended else self._saved(job))

    def new_log(self, job: Job) -> str:
        """What the jobs have written since the last call, and not those of earlier submissions, in the jobs' order."""
        listed = self._run(f"find {_folder(job, 'slurm')} -type f -name '*.out' -size +0", may_fail=True) or ""
        text = ""
        for file in sorted(filter(None, (_place(path, job.ids) for path in listed.splitlines()))):
            path = file[-1]
            start = self._read.get(path, 0)
            new = self._run(f"tail -c +{start + 1} {shlex.quote(path)}", may_fail=True) or ""
            self._read[path] = start + len(new.encode())
            text += new
        return text

    def _saved(self, job: Job) -> str:
        found = self._run(f"cd {_folder(job)} && find . -path '*checkpoints/last' -printf '%l '", may_fail=True)
        saved = " ".join((found or "").split())
        return f"{saved} is saved, from where resume=true goes on" if saved else "nothing was saved"

    def cancel(self, job: Job) -> None:
        """Raises ValueError where it has ended."""
        if self.state(job).ended:
            raise ValueError(f"{job.output} does not run: its job has ended")
        self._must(f"scancel {' '.join(map(shlex.quote, job.ids))}")

    def _must(self, command: str) -> str:
        """What it prints. Raises ValueError with what it complains of."""
        done = self._tunnel.run(command, warn=True, in_stream=False)
        if done.return_code:
            raise ValueError(f"{command.split()[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def _run(self, command: str, may_fail: bool = False) -> str | None:
        """None where it fails, and may."""
        done = self._tunnel.run(command, warn=may_fail, in_stream=False)
        return None if done.return_code else done.stdout


def _listed(job: Job) -> str:
    return shlex.quote(",".join(job.ids))


def _folder(job: Job, *parts: str) -> str:
    """In OUTPUT, where that is, for a shell: no command takes a path from the root on for an option."""
    where = job.launcher.workdir or "" if job.launcher.elsewhere else Path.cwd()
    return shlex.quote(str(Path(where, job.output, *parts)))


def _place(path: str, ids: list[str]) -> tuple[int, bool, str] | None:
    """By which log files are told in order: NeMo-Run has one of its script, which echoes itself, and one of the run."""
    name = Path(path).name
    found = re.search(r"(?:^|_)(\d+)(?:_\d+)*\.out$", name)
    if found is None or found[1] not in ids:
        return None
    return ids.index(found[1]), not name.startswith("sbatch_"), path
