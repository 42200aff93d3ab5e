"""What a job is called, and what its processes find in their environment."""

import hashlib
import re

from nemo_cdt.config import Accelerator, Config
from nemo_cdt.config.launcher import Fabric

NODE = "nemo_cdt.launch.node"
"""The module that a scheduler starts once on every node."""
PORT = 29500
"""At which nodes meet, where their scheduler names none."""
USER_ERROR = 2
"""The exit code of a node for what another attempt would not mend."""


def job_name(config: Config) -> str:
    """A name for any scheduler: lower case letters, digits and -, at most 40. Points of a sweep differ in OUTPUT."""
    slug = re.sub(r"[^a-z0-9]+", "-", config.name.lower()).strip("-")[:31].strip("-")
    return f"{slug or 'run'}-{hashlib.sha256(config.output.encode()).hexdigest()[:8]}"


def gpus(config: Config) -> int:
    """GPUs of one node that the run asks its scheduler for."""
    return 0 if config.trainer.accelerator is Accelerator.cpu else config.trainer.devices


def environment(config: Config) -> dict[str, str]:
    """Of every process, NCCL's settings first, so that ``launcher.env`` can replace them."""
    launcher, found = config.launcher, {"PYTHONUNBUFFERED": "1"}
    if gpus(config):
        found |= {
            "NCCL_NVLS_ENABLE": "0",  # H100: its multicast buffers take memory of their own; A100 has none
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # Megatron overlaps tensor and context parallelism only so
        }
        if config.trainer.num_nodes > 1 and launcher.fabric is Fabric.ethernet:
            found["NCCL_IB_DISABLE"] = "1"  # NCCL would try cards that reach no other node
    if launcher.interface:  # each would take the first that is up, on some nodes one that reaches no other
        found |= {"NCCL_SOCKET_IFNAME": launcher.interface, "GLOO_SOCKET_IFNAME": launcher.interface}
    return found | launcher.env
