"""A run as manifests of Kubernetes: a ConfigMap with the configuration, and a TrainJob, a PyTorchJob or a Job.

One Pod a node, which runs nemo_cdt/launch/node: it starts torchrun there. Kubernetes starts a Pod again that was
preempted or lost; what it wrote is in OUTPUT, on a volume. The manifests are our own: NeMo-Run's KubeflowExecutor
writes ``podTemplateOverrides``, which Trainer 2.2 and later drop, and variables that no shell expands.
"""

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import yaml
from omegaconf import OmegaConf

from nemo_cdt.config import Config
from nemo_cdt.config.launcher import JobKind, TrainJobPatch
from nemo_cdt.launch.names import NODE, PORT, USER_ERROR, environment, gpus, job_name

Manifest = dict[str, Any]
CONFIG = PurePosixPath("/etc/nemo_cdt/config.yaml")
INDEX = "batch.kubernetes.io/job-completion-index"


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as it is."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def render(config: Config) -> str:
    """As ``kubectl apply -f -`` takes it."""
    return yaml.dump_all(manifests(config), Dumper=_Dumper, sort_keys=False, width=120)


def manifests(config: Config) -> list[Manifest]:
    """In the order in which they are created; the last is the job."""
    name = job_name(config)
    config_map = _object(config, "v1", "ConfigMap", data={"config.yaml": _as_it_runs(config)})
    match config.launcher.kind:
        case JobKind.trainjob:
            return [config_map, _train_job(config)]
        case JobKind.pytorchjob:
            return [config_map, _pytorch_job(config)]
        case JobKind.job:
            service = {"clusterIP": "None", "selector": {"job-name": name}, "publishNotReadyAddresses": True}
            return [config_map, _object(config, "v1", "Service", spec=service), _job(config)]


def _object(config: Config, version: str, kind: str, **content: Any) -> Manifest:
    metadata = {"name": job_name(config), "namespace": config.launcher.namespace, "labels": _labels(config)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **content}


def _queued(config: Config, manifest: Manifest) -> Manifest:
    """For Kueue, which holds the job back until there is room for all of it."""
    if config.launcher.queue:
        manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = config.launcher.queue
    return manifest


def _labels(config: Config) -> dict[str, str]:
    return {"app.kubernetes.io/name": "nemo-cdt", "app.kubernetes.io/instance": job_name(config)}


def _as_it_runs(config: Config) -> str:
    """A first attempt goes on only from what this very run has saved: nemo_cdt/launch/node/preflight.py."""
    return OmegaConf.to_yaml(OmegaConf.structured(replace(config, launcher=replace(config.launcher, dryrun=False))))


def _job(config: Config) -> Manifest:
    """Its Pods meet at the first, by the name that the headless Service gives it."""
    nodes, name = config.trainer.num_nodes, job_name(config)
    rank = {"name": "NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}}
    meet = {"NNODES": str(nodes), "MASTER_ADDR": f"{name}-0.{name}", "MASTER_PORT": str(PORT)}
    pod = _pod(config, [rank, *_variables(meet)])
    pod["spec"] |= {"restartPolicy": "Never", "subdomain": name}
    spec = {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": config.launcher.requeues * nodes,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "node", "operator": "In", "values": [USER_ERROR]},
                },
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": pod,
    }
    return _queued(config, _object(config, "batch/v1", "Job", spec=spec))


def _pytorch_job(config: Config) -> Manifest:
    """The operator tells the Pods where they meet. ``ExitCode``: it starts one again that a signal ended, or SIGTERM
    after saving; exit codes up to 127 are final."""
    nodes = config.trainer.num_nodes

    def replicas(count: int) -> Manifest:
        pod = _pod(config, [], container="pytorch")  # the operator looks for that name
        return {"replicas": count, "restartPolicy": "ExitCode", "template": pod}

    specs = {"Master": replicas(1)} | ({"Worker": replicas(nodes - 1)} if nodes > 1 else {})
    policy = {"cleanPodPolicy": "Running", "backoffLimit": config.launcher.requeues * nodes}
    spec = {"nprocPerNode": str(config.trainer.devices), "runPolicy": policy, "pytorchReplicaSpecs": specs}
    return _queued(config, _object(config, "kubeflow.org/v1", "PyTorchJob", spec=spec))


def _train_job(config: Config) -> Manifest:
    """How often it starts again is in its runtime; what a TrainJob cannot say itself is a patch of that."""
    launcher, pod = config.launcher, _pod(config, [])
    (container,) = pod["spec"].pop("containers")
    in_pod = ["volumes", "nodeSelector", "tolerations", "serviceAccountName", "imagePullSecrets"]
    in_container = ["name", "volumeMounts"]  # no `env`: both kinds of patch refuse it for the container of training
    if launcher.trainjob_patch is TrainJobPatch.runtimePatches:
        in_pod.append("terminationGracePeriodSeconds")
        in_container.append("securityContext")
    patch = {key: pod["spec"][key] for key in in_pod if key in pod["spec"]}
    patch["containers"] = [{key: container[key] for key in in_container if key in container}]
    if launcher.trainjob_patch is TrainJobPatch.runtimePatches:
        job = {"name": "node", "template": {"spec": {"template": {"metadata": pod["metadata"], "spec": patch}}}}
        runtime = {"template": {"spec": {"replicatedJobs": [job]}}}
        patches = {"runtimePatches": [{"manager": "nemo-cdt.org/launcher", "trainingRuntimeSpec": runtime}]}
    else:
        overrides = {"targetJobs": [{"name": "node"}], "metadata": pod["metadata"], "spec": patch}
        patches = {"podTemplateOverrides": [overrides]}
    spec = {
        "runtimeRef": {
            "apiGroup": "trainer.kubeflow.org",
            "kind": "ClusterTrainingRuntime",
            "name": launcher.runtime,
        },
        "trainer": {
            "image": container["image"],
            "command": container["command"],
            "env": container["env"],
            "numNodes": config.trainer.num_nodes,
            "numProcPerNode": config.trainer.devices,
            "resourcesPerNode": container["resources"],
        },
        **patches,
    }
    return _queued(config, _object(config, "trainer.kubeflow.org/v1alpha1", "TrainJob", spec=spec))


def _pod(config: Config, variables: list[Manifest], container: str = "node") -> Manifest:
    """The template of one node's Pod, without a restart policy: each kind of job has its own."""
    launcher = config.launcher
    volumes, mounts = _volumes(config)
    spec: Manifest = {
        "containers": [
            {
                "name": container,
                "image": launcher.image,
                "command": [launcher.python, "-m", NODE, str(CONFIG)],
                "env": [
                    *variables,
                    *_variables(environment(config) | {"NEMO_CDT_JOB": job_name(config)}),
                    *_secrets(config),
                ],
                "resources": _resources(config),
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
        "terminationGracePeriodSeconds": launcher.grace,
    }
    if launcher.rdma:
        spec["containers"][0]["securityContext"] = {"capabilities": {"add": ["IPC_LOCK"]}}  # RDMA pins memory
    optional = {
        "nodeSelector": launcher.node_selector,
        "tolerations": launcher.tolerations,
        "priorityClassName": launcher.priority,
        "serviceAccountName": launcher.service_account,
        "imagePullSecrets": [{"name": secret} for secret in launcher.image_pull_secrets],
    }
    return {"metadata": {"labels": _labels(config)}, "spec": spec | {k: v for k, v in optional.items() if v}}


def _volumes(config: Config) -> tuple[list[Manifest], list[Manifest]]:
    """The claims, shared memory for NCCL and data loaders, and the configuration."""
    launcher = config.launcher
    shm = {"medium": "Memory", "sizeLimit": launcher.shared_memory}
    volumes: list[Manifest] = [
        {"name": "config", "configMap": {"name": job_name(config)}},
        {"name": "shm", "emptyDir": shm},
    ]
    mounts: list[Manifest] = [
        {"name": "config", "mountPath": str(CONFIG.parent), "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    for index, (claim, path) in enumerate(launcher.volumes.items()):
        volumes.append({"name": f"volume-{index}", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": f"volume-{index}", "mountPath": path})
    return volumes, mounts


def _resources(config: Config) -> Manifest:
    """Of one node, for certain: requests are limits."""
    launcher, count = config.launcher, gpus(config)
    wanted = {"cpu": launcher.cpu, "memory": launcher.memory, launcher.gpu_resource: count and str(count)}
    amounts = {k: v for k, v in wanted.items() if v} | {k: str(v) for k, v in launcher.rdma.items()}
    return {"requests": amounts, "limits": dict(amounts)}


def _variables(values: dict[str, str]) -> list[Manifest]:
    """``$`` is doubled: Kubernetes would put another variable's value for $(NAME)."""
    return [{"name": name, "value": value.replace("$", "$$")} for name, value in values.items()]


def _secrets(config: Config) -> list[Manifest]:
    references = ((name, *reference.split("/", 1)) for name, reference in config.launcher.secrets.items())
    return [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}} for name, secret, key in references
    ]
