"""What a scheduler starts once on every node: the run's processes there, by torchrun, and what became of them.

python -m nemo_cdt.launch.node CONFIG     # in the environment of Slurm or Kubernetes, or MASTER_ADDR, NNODES, NODE_RANK

Exits with 0, with 143 when SIGTERM asked for the end and the run has saved (the scheduler should start it again), with
2 for a mistake of the user's (it should not), with 1 for any other failure.
"""

import os
import socket
import sys
import tempfile
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from nemo_cdt.config import Config, load, save
from nemo_cdt.launch.baseline import with_baseline
from nemo_cdt.launch.node.place import PATIENCE, Place
from nemo_cdt.launch.node.torchrun import fail, train
from nemo_cdt.tracking import send_report
from nemo_cdt.utils.lock import held
from nemo_cdt.utils.noise import PYNVML
from nemo_cdt.utils.user_errors import reported

LEASE = 120
"""Seconds after which a file server has forgotten the locks of a machine that died."""


def main() -> None:
    if len(sys.argv) != 2:
        fail("usage: python -m nemo_cdt.launch.node CONFIG, a file of nemo-cdt train --cfg job", 2)
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
                    train(run, place, Path(folder, f"{index}.yaml"))
        if config.report and place.rank == 0:
            from nemo_cdt.report import write_report

            send_report(config, write_report(Path(config.output)))
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
