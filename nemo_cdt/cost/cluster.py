"""The GPUs that a plan is for: the schema of ``conf/cluster/``."""

from dataclasses import dataclass, field

from nemo_cdt.config import Config


@dataclass(kw_only=True, slots=True)
class Cluster:
    """Fractions are of ``peak_tflops``; bandwidths are one GPU's, in one direction, as a transfer achieves them."""

    gpu: str = "h100"
    gpus: int = 8
    gpus_per_node: int = 8
    memory_gib: float = 0.0  # what torch says the device has
    peak_tflops: float = 0.0  # dense bf16
    gemm_fraction: float = 0.0
    attention_forward_fraction: float = 0.0
    attention_backward_fraction: float = 0.0
    memory_gb_per_s: float = 0.0
    node_gb_per_s: float = 0.0  # to GPUs of the same node
    network_gb_per_s: float = 0.0  # to other nodes
    host_gb_per_s: float = 0.0  # to the CPU's memory

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * 2**30)


@dataclass(kw_only=True, slots=True)
class Planned(Config):
    """A run, and where it is to run."""

    cluster: Cluster = field(default_factory=Cluster)
