"""The schema of ``conf/launcher``: where a run's processes come from. What is of a site alone has no default here."""

# ruff: noqa: RUF009  (`_of` is `field` with metadata)
import re
from dataclasses import dataclass, field, fields
from typing import Any, Optional

from nemo_cdt.enums import StrEnum


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


SLURM, KUBERNETES = LauncherName.slurm, LauncherName.kubernetes
CLUSTERS = (SLURM, KUBERNETES)


@dataclass(kw_only=True, slots=True)
class Launcher:
    name: LauncherName = LauncherName.local
    max_restarts: int = 0  # of all processes from the last checkpoint, after one of them failed

    site: Optional[str] = _of(*CLUSTERS)  # a file with values for the keys below; None: see launchers/site.py
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


CONTROL = re.compile(r"[\x00-\x1f\x7f]")
SECRET = re.compile(r"(?i)(token|secret|passw|credential|api_?key|access_?key)")
WORD = r"[\w.,:=+@/|&*!()\[\]-]*"
VARIABLE = r"[A-Za-z_]\w*"
NAME = r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.,=+/-]*"
K8S_NAME = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"
PATTERNS = {
    "workdir": r"/[\w.,=+/@-]*",
    "time": r"\d+(-\d+)?(:\d+){0,2}",
    "array": r"\d+([-,:]\d+)*(%\d+)?",
    "mem": r"\d+[KMGT]?",
    "namespace": K8S_NAME,
    "runtime": K8S_NAME,
    "queue": K8S_NAME,
    "priority": K8S_NAME,
    "service_account": K8S_NAME,
    "shared_memory": r"\d+([KMGT]i?)?",
}
EXAMPLES = {"time": "4:00:00, or 1-12:00:00 with days", "array": "1-4, or 1-9:2%2", "mem": "200G"}
FREE = {"site", "identity", "setup", "env", "tolerations", "node_selector", "context"}
"""Values that are quoted, or are shell by intent; what they may not hold is a line break."""
REQUIRED = {SLURM: ("account", "partition"), KUBERNETES: ("namespace", "image", "workdir", "volumes")}


def check_launcher(launcher: Launcher, name: str, output: str, where: str) -> None:
    """Raise ValueError for a launcher that cannot be. ``where`` is the file that could give what is missing."""
    _check_keys(launcher)
    if launcher.name is LauncherName.local:
        return
    for key in REQUIRED[launcher.name]:
        if getattr(launcher, key) in (None, {}):
            raise ValueError(f"launcher.{key} is missing: set {key} in {where}, or launcher.{key} here")
    if launcher.elsewhere and not launcher.workdir:
        raise ValueError(f"launcher.workdir is missing: set workdir in {where}, or launcher.workdir here")
    _check_values(launcher)
    for key, value in (("name", name), ("output", output)):
        if not re.fullmatch(NAME if key == "name" or launcher.elsewhere else rf"/?{NAME}", value):
            raise ValueError(
                f"{key}={value!r} with launcher={launcher.name}: set it to letters, digits and . _ - = + , /"
                + (", a path in launcher.workdir" if key == "output" and launcher.elsewhere else "")
            )


def _check_keys(launcher: Launcher) -> None:
    own, plain = keys_of(launcher.name), Launcher()
    for key in fields(Launcher):
        value = getattr(launcher, key.name)
        if key.name not in own and value != getattr(plain, key.name):
            raise ValueError(f"launcher.{key.name}={value} has no effect with launcher={launcher.name}: remove it")


def _check_values(launcher: Launcher) -> None:
    for key in fields(Launcher):
        for value in _strings(getattr(launcher, key.name)):
            if CONTROL.search(value):
                raise ValueError(f"launcher.{key.name}={value!r} has a line break or a control character: remove it")
            if key.name not in FREE and not re.fullmatch(PATTERNS.get(key.name, WORD), value):
                raise ValueError(f"launcher.{key.name}={value!r} is no value for it: {_expected(key.name)}")
    for variable in (*launcher.env, *launcher.secrets):
        if not re.fullmatch(VARIABLE, variable):
            raise ValueError(f"{variable!r} is no name of an environment variable: set it to letters, digits and _")
    for variable in filter(SECRET.search, launcher.env):
        raise ValueError(
            f"launcher.env.{variable} would be written into the job: "
            + ("set launcher.secrets" if launcher.name is KUBERNETES else "set it in your shell or in launcher.setup")
        )
    for variable, reference in launcher.secrets.items():
        if not re.fullmatch(rf"{K8S_NAME}/[\w.-]+", reference):
            raise ValueError(f"launcher.secrets.{variable} is no reference: set it to SECRET/KEY, never to the value")
    for claim, path in launcher.volumes.items():
        if not re.fullmatch(K8S_NAME, claim) or not path.startswith("/"):
            raise ValueError(f"launcher.volumes.{claim}={path}: set it to CLAIM: /PATH")
    if launcher.kind is JobKind.trainjob and launcher.priority:
        raise ValueError(
            f"launcher.priority={launcher.priority} has no place in a TrainJob: set launcher.priority=null, "
            f"and the priority in the training runtime {launcher.runtime}"
        )
    if launcher.name is SLURM:
        _check_slurm(launcher)


def _check_slurm(launcher: Launcher) -> None:
    if launcher.array and launcher.chain > 1:
        raise ValueError(f"launcher.array={launcher.array} with launcher.chain={launcher.chain}: set chain=1")
    backwards = [f"{a}-{b}" for a, b in re.findall(r"(\d+)-(\d+)", launcher.array or "") if int(b) < int(a)]
    if backwards or (launcher.array or "").endswith("%0"):
        raise ValueError(f"launcher.array={launcher.array} has no task: set it to something like {EXAMPLES['array']}")
    for mount in launcher.mounts:
        if not all(path.startswith("/") for path in mount.split(":")[:2]):
            raise ValueError(f"launcher.mounts={mount}: set it to /FROM:/TO")
    longest = 65535 if launcher.time is None else min(65535, seconds(launcher.time) - 1)  # Slurm's own limit
    if launcher.grace > longest:
        of = "" if launcher.time is None else f" of launcher.time={launcher.time}"
        raise ValueError(
            f"launcher.grace={launcher.grace} seconds{of}: set it to {longest} or less, to leave time to train"
        )


def seconds(time: str) -> int:
    """Of Slurm's M, M:S, H:M:S, D-H, D-H:M and D-H:M:S."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = [3600, 60, 1] if dash or len(parts) == 3 else [60, 1]
    return int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False))


def _expected(key: str) -> str:
    if key in EXAMPLES:
        return f"set it to something like {EXAMPLES[key]}"
    return (
        f"it must match {PATTERNS[key]}" if key in PATTERNS else "leave out spaces, quotes and the shell's characters"
    )


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.items() for part in item for text in _strings(part)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return [str(value)] if isinstance(value, str) else []
