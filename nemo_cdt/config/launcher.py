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
PLACEHOLDER = "SET_LAUNCHER_"
"""And the key's name, in a script that is only shown: in place of a value that is missing. It is no value itself."""
SLURM, KUBERNETES = LauncherName.slurm, LauncherName.kubernetes
CLUSTERS = (SLURM, KUBERNETES)


@dataclass(kw_only=True, slots=True)
class Launcher:
    """Where a run's processes come from. Nodes are trainer.num_nodes, and the GPUs of each are trainer.devices."""

    name: LauncherName = LauncherName.local
    """The launcher; set it as launcher=NAME."""
    max_restarts: int = 0
    """How often all processes start again from the last checkpoint after one of them failed, within one job."""

    site: Optional[str] = _of(*CLUSTERS)
    """A file with your site's values for the keys below; null takes $NEMO_CDT_SITE, or ~/.config/nemo_cdt/site.yaml."""
    dryrun: bool = _of(*CLUSTERS, default=False)
    """Show what would run, and submit nothing."""
    follow: bool = _of(*CLUSTERS, default=True)
    """Show the job's log until it ends; a sweep never does."""
    workdir: Optional[str] = _of(*CLUSTERS)
    """The folder on the cluster in which relative paths begin, where the cluster is not this machine."""
    python: str = _of(*CLUSTERS, default="python")
    """The Python on the cluster that has this package installed."""
    image: Optional[str] = _of(*CLUSTERS)
    """The container's image; Slurm needs Pyxis for it."""
    env: dict[str, str] = _of(*CLUSTERS, factory=dict)
    """Environment variables of the run. Keep secrets out: they are written into scripts and logs."""
    fabric: Fabric = _of(*CLUSTERS, default=Fabric.infiniband)
    """The network between nodes; set ethernet where there is no InfiniBand."""
    interface: Optional[str] = _of(*CLUSTERS)
    """The network interface of NCCL's and gloo's sockets, such as eth0; null lets each choose."""
    hang_timeout: Optional[int] = _of(*CLUSTERS, default=1800)
    """The seconds after which a silent rank counts as dead; a start, a step and a save must take less. Null: never."""
    grace: int = _of(*CLUSTERS, default=120)
    """The seconds that a run has to save in after SIGTERM."""
    requeues: int = _of(*CLUSTERS, default=3)
    """How often a job goes back to the queue after a preemption, a failure or the end of its time."""

    submit: Submit = _of(SLURM, default=Submit.nemo_run)
    """What hands the job to Slurm: NeMo-Run's executor, or sbatch with a script of our own."""
    host: Optional[str] = _of(SLURM)
    """A login node that is reached by SSH; null means that this machine is one."""
    user: Optional[str] = _of(SLURM)
    """The user on the login node; null lets SSH choose."""
    identity: Optional[str] = _of(SLURM)
    """The file of an SSH key."""
    account: Optional[str] = _of(SLURM)
    """The Slurm account that pays for the job; '' where your Slurm has no accounts."""
    partition: Optional[str] = _of(SLURM)
    """The partition of the job."""
    qos: Optional[str] = _of(SLURM)
    """The quality of service of the job."""
    time: Optional[str] = _of(SLURM)
    """The job's time limit, such as 4:00:00; null takes the partition's."""
    constraint: Optional[str] = _of(SLURM)
    """The features that a node must have, as in sbatch --constraint."""
    exclude: Optional[str] = _of(SLURM)
    """The nodes to leave out, as in sbatch --exclude."""
    mem: Optional[str] = _of(SLURM)
    """The host memory of a node, as in sbatch --mem."""
    cpus_per_task: Optional[int] = _of(SLURM)
    """The CPU cores of a node: one task runs on each node."""
    exclusive: bool = _of(SLURM, default=False)
    """Whether the job has its nodes for itself."""
    request_gpus: bool = _of(SLURM, default=True)
    """Whether GPUs are asked of Slurm; set false where they are no resource of it."""
    mounts: list[str] = _of(SLURM, factory=list)
    """Folders that the container sees, as FROM:TO."""
    setup: list[str] = _of(SLURM, factory=list)
    """Shell lines before the run, such as `module load`."""
    chain: int = _of(SLURM, default=1)
    """The number of jobs that are submitted in a row; each goes on where the one before did not finish."""
    array: Optional[str] = _of(SLURM)
    """The tasks of a Slurm array, such as 1-4; task i trains with trainer.seed=i in OUTPUT/seed=i."""

    context: Optional[str] = _of(KUBERNETES)
    """The context of the kubeconfig; null takes the current one."""
    namespace: Optional[str] = _of(KUBERNETES)
    """The namespace of the job."""
    kind: JobKind = _of(KUBERNETES, default=JobKind.job)
    """What runs the job: Kubernetes' own indexed Job, a PyTorchJob of the training operator, a TrainJob of Kubeflow."""
    runtime: str = _of(KUBERNETES, default="torch-distributed")
    """With kind=trainjob: the ClusterTrainingRuntime."""
    trainjob_patch: TrainJobPatch = _of(KUBERNETES, default=TrainJobPatch.runtimePatches)
    """With kind=trainjob: how volumes and tolerations reach the runtime; before Trainer 2.2 by podTemplateOverrides."""
    queue: Optional[str] = _of(KUBERNETES)
    """Kueue's LocalQueue, which holds the job back until all its Pods fit."""
    priority: Optional[str] = _of(KUBERNETES)
    """The PriorityClass of the Pods."""
    volumes: dict[str, str] = _of(KUBERNETES, factory=dict)
    """Each PersistentVolumeClaim, and the path where it is mounted."""
    shared_memory: str = _of(KUBERNETES, default="64Gi")
    """The size of /dev/shm."""
    cpu: Optional[str] = _of(KUBERNETES)
    """The CPU cores of a node's Pod."""
    memory: Optional[str] = _of(KUBERNETES)
    """The host memory of a node's Pod."""
    gpu_resource: str = _of(KUBERNETES, default="nvidia.com/gpu")
    """The resource by which a Pod asks for GPUs."""
    rdma: dict[str, int] = _of(KUBERNETES, factory=dict)
    """Each resource of the RDMA network, and how many of it a node gets."""
    node_selector: dict[str, str] = _of(KUBERNETES, factory=dict)
    """The labels that a node must have."""
    tolerations: list[dict[str, Any]] = _of(KUBERNETES, factory=list)
    """The taints that the Pods tolerate."""
    service_account: Optional[str] = _of(KUBERNETES)
    """The ServiceAccount of the Pods."""
    image_pull_secrets: list[str] = _of(KUBERNETES, factory=list)
    """The secrets with which the image is pulled."""
    secrets: dict[str, str] = _of(KUBERNETES, factory=dict)
    """Each environment variable that comes from a secret, as SECRET/KEY."""

    @property
    def elsewhere(self) -> bool:
        """Whether the run's files are on another machine than this one."""
        return self.name is KUBERNETES or self.host is not None


def keys_of(name: LauncherName) -> set[str]:
    return {key.name for key in fields(Launcher) if name in key.metadata.get("launchers", LauncherName)}
