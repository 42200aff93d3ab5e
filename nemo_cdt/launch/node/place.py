"""Where a node is among those of its job, from what its scheduler put into the environment."""

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from nemo_cdt.launch.names import PORT

PATIENCE = 900
"""Seconds in which all nodes must have come."""


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
