"""What a scheduler starts once on every node: the run's processes there, by torchrun, and what became of them.

python -m nemo_cdt.launch.node CONFIG     # in the environment of Slurm or Kubernetes, or MASTER_ADDR, NNODES, NODE_RANK

Exits with 0, with 143 when SIGTERM asked for the end and the run has saved (the scheduler should start it again), with
2 for a mistake of the user's (it should not), with 1 for any other failure.
"""

import importlib.util
import logging
import os
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from nemo_cdt.config import Config, load, save
from nemo_cdt.launch.baseline import with_baseline
from nemo_cdt.launch.names import job_name
from nemo_cdt.launch.node.worker import done
from nemo_cdt.nemo.console import PYNVML
from nemo_cdt.utils.lock import held
from nemo_cdt.utils.user_errors import reported

WORKER = "nemo_cdt.launch.node.worker"
PORT = 29500
PATIENCE = 900
"""Seconds in which all nodes must have come."""
LEASE = 120
"""Seconds after which a file server has forgotten the locks of a machine that died."""


AFTER_SIGTERM = (
    "asyncio",
    "nvidia_resiliency_ext.fault_tolerance.launcher",
    "nvidia_resiliency_ext.fault_tolerance._torch_elastic_compat.multiprocessing.api",
)
"""Who calls an end that was asked for a failure, at length; of a real one we say more (:func:`_explain`)."""


@dataclass(frozen=True)
class Place:
    """This node among those of the job, and where they meet."""

    nodes: int
    rank: int
    address: str
    port: int
    job: str

    @classmethod
    def of(cls, env: Mapping[str, str]) -> "Place":
        """From what Slurm, the training operators or the Job of ours put into the environment."""
        if "SLURM_NODEID" in env:
            job = int(env["SLURM_JOB_ID"])
            return cls(
                nodes=int(env["SLURM_NNODES"]),
                rank=int(env["SLURM_NODEID"]),
                address=env["SLURM_LAUNCH_NODE_IPADDR"],  # of the node that runs the job's script: the first
                port=20000 + job % 10000,  # two jobs may share a node
                job=f"{job}.{env.get('SLURM_RESTART_COUNT', 0)}",
            )
        for nodes, rank, address in (("PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR"), ("NNODES", "NODE_RANK", "")):
            if nodes in env and rank in env:
                found = env.get(address) or env["MASTER_ADDR"]
                port = env.get("PET_MASTER_PORT") or env.get("MASTER_PORT") or PORT
                return cls(int(env[nodes]), int(env[rank]), found, int(port), env.get("NEMO_CDT_JOB", "run"))
        raise ValueError(
            "nemo_cdt.launch.node is started by a job of Slurm or Kubernetes: set NNODES, NODE_RANK, MASTER_ADDR"
        )

    def own_address(self) -> str:
        """Of this node, as the others reach it: a host name need not be known to them.

        Raises ValueError where the meeting point's name is not known within :data:`PATIENCE` seconds.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                family, _, _, _, there = socket.getaddrinfo(self.address, self.port, type=socket.SOCK_DGRAM)[0]
                with socket.socket(family, socket.SOCK_DGRAM) as route:
                    route.connect(there)  # sends nothing
                    return route.getsockname()[0]
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ValueError(f"{socket.gethostname()} finds no way to {self.address}: {error}") from error
                time.sleep(1)  # the first Pod may not be there yet


def main() -> None:
    if len(sys.argv) != 2:
        _fail("usage: python -m nemo_cdt.launch.node CONFIG, a file of recipes/cdt_llama31.py --cfg job", 2)
    file = Path(sys.argv[1])
    with reported():
        config = of_array_task(load(file), os.environ.get("SLURM_ARRAY_TASK_ID"))
        os.chdir(config.launcher.workdir or ".")
        place = Place.of(os.environ)
        if place.nodes != config.trainer.num_nodes:
            raise ValueError(f"trainer.num_nodes={config.trainer.num_nodes}, but the job has {place.nodes} nodes")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("LOGLEVEL", "ERROR")  # torchrun's log of every step it takes
        # Shared, torch 2.13 tells where the ranks meet in the first round only: a node that comes back waits for ever.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a node that leaves first is a warning
        os.environ.setdefault("PYTHONWARNINGS", f"ignore:{PYNVML}")
        warnings.filterwarnings("ignore", PYNVML)
        if place.nodes > 1:
            where = f"{place.address}:{place.port}, for {PATIENCE} seconds at most"
            print(f"node {place.rank} of {place.nodes}, {socket.gethostname()}, waits for all at {where}", flush=True)
        with tempfile.TemporaryDirectory(prefix="nemo_cdt-") as folder:
            for index, run in enumerate(with_baseline(config)):
                save(run, Path(folder, f"{index}.yaml"))
                # A node that died, and with it the attempt before this one, may hold the lock a while.
                with held(Path(run.output), wait=LEASE) if place.rank == 0 else nullcontext():
                    _train(run, place, Path(folder, f"{index}.yaml"))
        if config.report and place.rank == 0:
            from nemo_cdt.report import write_report

            write_report(Path(config.output))
            print(f"{config.name} is done, in {config.output}", flush=True)


def of_array_task(config: Config, task: str | None) -> Config:
    """Task i of a Slurm array is the run with that seed."""
    if task is None:
        return config
    part = f"seed={int(task)}"
    output = str(Path(config.output, part))
    hf = config.export.hf and str(Path(config.export.hf, part))
    return replace(
        config,
        name=f"{config.name}/{part}",
        output=output,
        trainer=replace(config.trainer, seed=int(task)),
        export=replace(config.export, hf=hf),
    )


def _train(run: Config, place: Place, file: Path) -> None:
    """SystemExit where the run does not reach its end."""
    hangs = run.launcher.hang_timeout is not None
    resilient = hangs and importlib.util.find_spec("nvidia_resiliency_ext") is not None
    if hangs and not resilient:
        print("nvidia-resiliency-ext is not installed: torchrun does not see a rank that hangs", file=sys.stderr)
    if resilient:
        from nvidia_resiliency_ext.fault_tolerance import launcher as elastic

        logging.getLogger("nvidia_resiliency_ext").setLevel(logging.ERROR)  # as LOGLEVEL, which it does not read
        for name in AFTER_SIGTERM:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        # For a restarter of its own, outside the job; it calls the end of a run "aborted". It sets its level itself.
        logging.getLogger("RankMonServer.Restarter").addFilter(lambda record: False)
    else:
        from torch.distributed import run as elastic
    settings = _arguments(run, place) + (_watched(run) if resilient else _unwatched(run))
    try:
        elastic.run(elastic.parse_args([*settings, "-m", WORKER, str(file)]))
    except Exception as error:
        # by name: nvidia-resiliency-ext has classes of its own by the same names
        match type(error).__name__:
            case "SignalException":
                raise SystemExit(128 + error.sigval) from None  # type: ignore[attr-defined]
            case "ChildFailedError":
                _explain(run, error.failures)  # type: ignore[attr-defined]
            case name if name.startswith("Rendezvous"):
                _fail(f"the {place.nodes} nodes did not meet at {place.address}:{place.port}: {error}", 1)
        raise
    # nvidia-resiliency-ext 0.4.1 returns as if all were well where a rank fails after another has reached the end.
    if missing := [rank for rank in range(run.trainer.devices) if not done(file, rank).exists()]:
        ranks = ", ".join(str(place.rank * run.trainer.devices + rank) for rank in missing)
        _fail(f"rank {ranks} on {socket.gethostname()} ended before the run did{_silence(run)}. {_where(run)}", 1)


def _arguments(run: Config, place: Place) -> list[str]:
    return [
        f"--nnodes={place.nodes}",
        f"--nproc-per-node={run.trainer.devices}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={place.address}:{place.port}",
        f"--rdzv-id={place.job}-{job_name(run)}",
        # by its rank: torchrun would compare host names, which differ between a Pod and its Service
        f"--rdzv-conf=is_host={int(place.rank == 0)},join_timeout={PATIENCE},read_timeout={PATIENCE}",
        f"--local-addr={place.own_address()}",
        f"--max-restarts={run.launcher.max_restarts}",
        "--tee=3",
    ]


def _unwatched(run: Config) -> list[str]:
    return [f"--shutdown-timeout={run.launcher.grace}"]


def _watched(run: Config) -> list[str]:
    """nvidia-resiliency-ext ends a rank from which nothing is heard, and so all; then they start again."""
    return [
        f"--term-timeout={run.launcher.grace}",
        f"--ft-initial-rank-heartbeat-timeout={run.launcher.hang_timeout}",
        f"--ft-rank-heartbeat-timeout={run.launcher.hang_timeout}",
        "--ft-log-level=ERROR",
        "--ft-enable-nic-monitor=False",
    ]


def _explain(run: Config, failures: Mapping[int, Any]) -> NoReturn:
    """Which rank failed first, and with what; the exit code says whether to start again."""
    codes = {failure.exitcode for failure in failures.values()}
    if codes <= {128 + signal.SIGTERM, -signal.SIGTERM}:
        raise SystemExit(128 + signal.SIGTERM)
    if 2 in codes:
        raise SystemExit(2)  # the rank has said why
    rank, first = min(failures.items(), key=lambda item: item[1].timestamp)
    ended = signal.Signals(-first.exitcode).name if first.exitcode < 0 else f"exit code {first.exitcode}"
    ended += _silence(run) if ended == "SIGKILL" else ""
    message = first.message["message"] if isinstance(first.message, dict) else first.message
    told = f": {message.splitlines()[0]}" if Path(first.error_file).is_file() else ""
    _fail(f"rank {rank} on {socket.gethostname()} failed with {ended}{told}. {_where(run)}", 1)


def _silence(run: Config) -> str:
    """What ends a rank by SIGKILL, where its monitor does."""
    limit = run.launcher.hang_timeout
    return "" if limit is None else f" (launcher.hang_timeout={limit} seconds without a sign of it, or no memory left?)"


def _where(run: Config) -> str:
    last = Path(run.output, "checkpoints/last")
    return f"The next attempt goes on from {last.resolve().name}" if last.exists() else "Nothing was saved"


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    raise SystemExit(code)
