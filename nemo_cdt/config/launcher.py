"""The schema of ``conf/launcher``: where a run's processes come from. What is of a site alone has no default here."""

# ruff: noqa: RUF009  (`_of` is `field` with metadata)
from dataclasses import dataclass, field, fields
from typing import Any, Optional

from nemo_cdt.utils.enums import StrEnum


class LauncherName(StrEnum):
    local = "local"
    slurm = "slurm"
    kubernetes = "kubernetes"


class Submit(StrEnum):
    """What hands a job to Slurm: NeMo-Run's executor, or ``sbatch`` with a script of our own."""

    nemo_run = "nemo_run"
    sbatch = "sbatch"


class Fabric(StrEnum):
    """What connects the nodes, for NCCL."""

    infiniband = "infiniband"
    ethernet = "ethernet"


class JobKind(StrEnum):
    """Kubeflow Trainer's TrainJob, the training operator's PyTorchJob, or Kubernetes' own indexed Job."""

    trainjob = "trainjob"
    pytorchjob = "pytorchjob"
    job = "job"


class TrainJobPatch(StrEnum):
    """How a TrainJob adds volumes and the like to its runtime: before Trainer 2.2 by the latter."""

    runtimePatches = "runtimePatches"
    podTemplateOverrides = "podTemplateOverrides"


def _of(*launchers: LauncherName, default: Any = None, factory: Any = None) -> Any:
    """A key of these launchers: another refuses it."""
    metadata = {"launchers": launchers}
    return field(default_factory=factory, metadata=metadata) if factory else field(default=default, metadata=metadata)


SQUASHED = (".sqsh", ".sqfs", ".squashfs")
"""What a container's image is called where it is a file, as enroot makes it."""
SLURM, KUBERNETES = LauncherName.slurm, LauncherName.kubernetes
CLUSTERS = (SLURM, KUBERNETES)


@dataclass(kw_only=True, slots=True)
class Launcher:
    name: LauncherName = LauncherName.local
    max_restarts: int = 0  # of all processes from the last checkpoint, after one of them failed

    site: Optional[str] = _of(*CLUSTERS)  # a file with values for the keys below; None: see nemo_cdt/launch/site.py
    dryrun: bool = _of(*CLUSTERS, default=False)  # show what would run
    follow: bool = _of(*CLUSTERS, default=True)  # show the job's log until it ends; a sweep does not
    workdir: Optional[str] = _of(*CLUSTERS)  # where relative paths begin on a cluster that is not this machine
    python: str = _of(*CLUSTERS, default="python")  # on the cluster, with this package installed
    image: Optional[str] = _of(*CLUSTERS)  # of a container; Slurm needs Pyxis for it
    env: dict[str, str] = _of(*CLUSTERS, factory=dict)
    fabric: Fabric = _of(*CLUSTERS, default=Fabric.infiniband)
    interface: Optional[str] = _of(*CLUSTERS)  # the network interface of NCCL's and gloo's sockets
    hang_timeout: Optional[int] = _of(*CLUSTERS, default=1800)  # seconds for a start, a step or a save; None: no limit
    grace: int = _of(*CLUSTERS, default=120)  # seconds to save in, after SIGTERM
    requeues: int = _of(*CLUSTERS, default=3)  # of a job that was preempted or lost a node

    submit: Submit = _of(SLURM, default=Submit.nemo_run)
    host: Optional[str] = _of(SLURM)  # a login node, reached by SSH; None: this machine is one
    user: Optional[str] = _of(SLURM)
    identity: Optional[str] = _of(SLURM)  # the file of an SSH key
    account: Optional[str] = _of(SLURM)
    partition: Optional[str] = _of(SLURM)
    qos: Optional[str] = _of(SLURM)
    time: Optional[str] = _of(SLURM)  # None: the partition's limit
    constraint: Optional[str] = _of(SLURM)
    exclude: Optional[str] = _of(SLURM)
    mem: Optional[str] = _of(SLURM)
    cpus_per_task: Optional[int] = _of(SLURM)  # of a node: one task a node
    exclusive: bool = _of(SLURM, default=False)
    request_gpus: bool = _of(SLURM, default=True)  # false where GPUs are no resource of Slurm's
    mounts: list[str] = _of(SLURM, factory=list)  # of the container: FROM:TO
    setup: list[str] = _of(SLURM, factory=list)  # shell lines before the run, such as `module load`
    chain: int = _of(SLURM, default=1)  # jobs that are submitted; each starts where the one before did not finish
    array: Optional[str] = _of(SLURM)  # tasks i of an array train with trainer.seed=i in OUTPUT/seed=i

    context: Optional[str] = _of(KUBERNETES)  # of the kubeconfig; None: its current one
    namespace: Optional[str] = _of(KUBERNETES)
    kind: JobKind = _of(KUBERNETES, default=JobKind.job)
    runtime: str = _of(KUBERNETES, default="torch-distributed")  # trainjob: its ClusterTrainingRuntime
    trainjob_patch: TrainJobPatch = _of(KUBERNETES, default=TrainJobPatch.runtimePatches)
    queue: Optional[str] = _of(KUBERNETES)  # Kueue's LocalQueue
    priority: Optional[str] = _of(KUBERNETES)  # a PriorityClass
    volumes: dict[str, str] = _of(KUBERNETES, factory=dict)  # PersistentVolumeClaim: where it is mounted
    shared_memory: str = _of(KUBERNETES, default="64Gi")
    cpu: Optional[str] = _of(KUBERNETES)  # of a node, as the next
    memory: Optional[str] = _of(KUBERNETES)
    gpu_resource: str = _of(KUBERNETES, default="nvidia.com/gpu")
    rdma: dict[str, int] = _of(KUBERNETES, factory=dict)  # resource: how many of it a node gets
    node_selector: dict[str, str] = _of(KUBERNETES, factory=dict)
    tolerations: list[dict[str, Any]] = _of(KUBERNETES, factory=list)
    service_account: Optional[str] = _of(KUBERNETES)
    image_pull_secrets: list[str] = _of(KUBERNETES, factory=list)
    secrets: dict[str, str] = _of(KUBERNETES, factory=dict)  # environment variable: SECRET/KEY

    @property
    def elsewhere(self) -> bool:
        """Whether the run's files are on another machine than this one."""
        return self.name is KUBERNETES or self.host is not None


def keys_of(name: LauncherName) -> set[str]:
    return {key.name for key in fields(Launcher) if name in key.metadata.get("launchers", LauncherName)}
