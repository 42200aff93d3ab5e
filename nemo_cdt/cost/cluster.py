"""The GPUs that a plan is for: the schema of ``conf/cluster/``."""

from dataclasses import dataclass, field

from nemo_cdt.config import Config


@dataclass(kw_only=True, slots=True)
class Cluster:
    """Fractions are of ``peak_tflops``; bandwidths are one GPU's where they name no other, in one direction,
    as a transfer achieves them.
    """

    gpu: str = "h100"
    """The kind of GPU: a100, h100, h200 or b200."""
    gpus: int = 8
    """The number of GPUs."""
    gpus_per_node: int = 8
    """The number of GPUs of a node."""
    memory_gib: float = 0.0
    """The memory of a GPU as torch reports it."""
    peak_tflops: float = 0.0
    """The peak rate of dense bf16 products."""
    gemm_fraction: float = 0.0
    """The fraction of the peak that matrix products reach."""
    attention_forward_fraction: float = 0.0
    """The fraction of the peak that attention's forward reaches."""
    attention_backward_fraction: float = 0.0
    """The fraction of the peak that attention's backward reaches."""
    memory_gb_per_s: float = 0.0
    """The bandwidth of a GPU's memory."""
    node_gb_per_s: float = 0.0
    """The bandwidth from a GPU to others of its node."""
    network_gb_per_s: float = 0.0
    """The bandwidth from a GPU to other nodes."""
    host_gb_per_s: float = 0.0
    """The bandwidth from a GPU to the host's memory."""
    storage_gb_per_s: float = 0.0
    """The bandwidth from a node to the file system of checkpoints."""

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * 2**30)


@dataclass(kw_only=True, slots=True)
class Planned(Config):
    """A run, and where it is to run."""

    cluster: Cluster = field(default_factory=Cluster)
