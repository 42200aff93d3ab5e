"""Jobs of Kubernetes, through its Python client and the user's kubeconfig."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from nemo_cdt.config import Config
from nemo_cdt.config.launcher import JobKind, Launcher
from nemo_cdt.launch.job import Job, State
from nemo_cdt.launch.kubernetes.manifests import Manifest, manifests

RESOURCES = {
    JobKind.job: ("batch", "v1", "jobs"),
    JobKind.pytorchjob: ("kubeflow.org", "v1", "pytorchjobs"),
    JobKind.trainjob: ("trainer.kubeflow.org", "v1alpha1", "trainjobs"),
}
SUCCEEDED, FAILED = {"Complete", "Succeeded"}, {"Failed"}


class Kubernetes:
    def __init__(self, launcher: Launcher) -> None:
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise ValueError(
                "launcher=kubernetes needs Kubernetes' client: pip install 'nemo-cdt[kubernetes]'"
            ) from error
        try:
            api = config.new_client_from_config(context=launcher.context)
        except config.ConfigException as error:
            raise ValueError(f"launcher.context={launcher.context}: {error}") from error
        self._core, self._jobs = client.CoreV1Api(api), client.CustomObjectsApi(api)
        self._namespace, self._kind = launcher.namespace, launcher.kind
        self._read: dict[str, int] = {}  # characters of each Pod's log

    def submit(self, config: Config) -> list[str]:
        """All of the manifests, or none. Raises ValueError for what the cluster refuses."""
        created: list[Manifest] = []
        for manifest in manifests(config):
            try:
                with _asking(f"launcher=kubernetes, output={config.output}"):
                    self._create(manifest)
            except ValueError:
                for earlier in created:
                    self._delete(earlier["kind"], earlier["metadata"]["name"])
                raise
            created.append(manifest)
        return [created[-1]["metadata"]["name"]]

    def is_alive(self, job: Job) -> bool:
        """False also where the cluster knows it no more."""
        from kubernetes.client import ApiException

        try:
            return not self.state(job).ended
        except ValueError as error:
            if isinstance(error.__cause__, ApiException) and error.__cause__.status == 404:
                return False
            raise

    def state(self, job: Job) -> State:
        with _asking(f"output={job.output}"):
            found = self._jobs.get_namespaced_custom_object(*self._where(), name=job.ids[0]).get("status", {})
        holding = [c for c in found.get("conditions", []) if c.get("status") == "True"]
        kinds = {condition["type"] for condition in holding}
        counts = [found, *found.get("jobsStatus", []), *found.get("replicaStatuses", {}).values()]
        pods = {key: sum(each.get(key) or 0 for each in counts) for key in ("active", "succeeded", "failed")}
        told = [" ".join(filter(None, (c["type"], c.get("reason"), c.get("message")))) for c in holding]
        line = f"{self._kind} {job.ids[0]}: {'; '.join(told) or ('Running' if pods['active'] else 'Pending')}"
        line += "".join(f", {count} Pods {key}" for key, count in pods.items() if count)
        return State([line], line, bool(kinds & (SUCCEEDED | FAILED)), bool(kinds & SUCCEEDED))

    def new_log(self, job: Job) -> str:
        """What the Pods have written since the last call, each line behind its Pod's name. None yet: nothing."""
        with _asking(f"output={job.output}"):
            pods = self._core.list_namespaced_pod(
                self._namespace, label_selector=f"app.kubernetes.io/instance={job.ids[0]}"
            ).items
        return "".join(self._new_log_of(pod) for pod in pods)

    def _new_log_of(self, pod: Any) -> str:
        from kubernetes.client import ApiException

        name = pod.metadata.name
        with suppress(ApiException):  # it has not started, or is gone
            whole = self._core.read_namespaced_pod_log(name, self._namespace, container=pod.spec.containers[0].name)
            end = whole.rfind("\n") + 1
            start, self._read[name] = self._read.get(name, 0), end
            return "".join(f"{name}: {line}\n" for line in whole[start:end].splitlines())
        return ""

    def cancel(self, job: Job) -> None:
        for kind in (self._kind.value, "Service", "ConfigMap"):
            with _asking(f"output={job.output}"):
                self._delete(kind, job.ids[0])

    def _where(self) -> tuple[str, str, str, str]:
        group, version, plural = RESOURCES[self._kind]
        return group, version, str(self._namespace), plural

    def _create(self, manifest: Manifest) -> None:
        match manifest["kind"]:
            case "ConfigMap":
                self._core.create_namespaced_config_map(self._namespace, manifest)
            case "Service":
                self._core.create_namespaced_service(self._namespace, manifest)
            case _:
                self._jobs.create_namespaced_custom_object(*self._where(), body=manifest)

    def _delete(self, kind: str, name: str) -> None:
        """Also what is not there."""
        from kubernetes.client import ApiException

        try:
            match kind:
                case "ConfigMap":
                    self._core.delete_namespaced_config_map(name, self._namespace)
                case "Service":
                    self._core.delete_namespaced_service(name, self._namespace)
                case _:
                    # with its Pods
                    self._jobs.delete_namespaced_custom_object(
                        *self._where(), name=name, propagation_policy="Background"
                    )
        except ApiException as error:
            if error.status != 404:
                raise


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """The cluster's refusal as a ValueError of one line."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        if error.status == 409:
            raise ValueError(f"{what} already has a job: nemo-cdt cancel it, or set another output") from error
        raise ValueError(f"{what}: Kubernetes answers {error.status} {error.reason}: {_message(error)}") from error
    except HTTPError as error:
        raise ValueError(f"{what}: the cluster of the kubeconfig does not answer: {error}") from error


def _message(error: Any) -> str:
    try:
        return json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        return str(error.body)
