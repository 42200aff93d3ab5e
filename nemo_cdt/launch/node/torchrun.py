"""A run's processes on a node, by torchrun or by nvidia-resiliency-ext's, and what became of them."""

import importlib.util
import logging
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from nemo_cdt.config import Config
from nemo_cdt.launch.names import job_name
from nemo_cdt.launch.node.place import PATIENCE, Place
from nemo_cdt.launch.node.worker import done

WORKER = "nemo_cdt.launch.node.worker"
AFTER_SIGTERM = (
    "asyncio",
    "nvidia_resiliency_ext.fault_tolerance.launcher",
    "nvidia_resiliency_ext.fault_tolerance._torch_elastic_compat.multiprocessing.api",
)
"""Who calls an end that was asked for a failure, at length; of a real one we say more (:func:`_explain`)."""


def train(run: Config, place: Place, file: Path) -> None:
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
                fail(f"the {place.nodes} nodes did not meet at {place.address}:{place.port}: {error}", 1)
        raise
    # nvidia-resiliency-ext 0.4.1 returns as if all were well where a rank fails after another has reached the end.
    if missing := [rank for rank in range(run.trainer.devices) if not done(file, rank).exists()]:
        ranks = ", ".join(str(place.rank * run.trainer.devices + rank) for rank in missing)
        fail(f"rank {ranks} on {socket.gethostname()} ended before the run did{_silence(run)}. {_where(run)}", 1)


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
    fail(f"rank {rank} on {socket.gethostname()} failed with {ended}{told}. {_where(run)}", 1)


def _silence(run: Config) -> str:
    """What ends a rank by SIGKILL, where its monitor does."""
    limit = run.launcher.hang_timeout
    return "" if limit is None else f" (launcher.hang_timeout={limit} seconds without a sign of it, or no memory left?)"


def _where(run: Config) -> str:
    last = Path(run.output, "checkpoints/last")
    return f"The next attempt goes on from {last.resolve().name}" if last.exists() else "Nothing was saved"


def fail(message: str, code: int) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    raise SystemExit(code)
