"""Manifests, strictly validated, and what speaks to a cluster, against a stand-in for its API server."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow.training.api_client import ApiClient
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from nemo_cdt.config import Config, load
from nemo_cdt.launch.jobs import cancel, launch_job, logs, recall, require_idle, status
from nemo_cdt.launch.kubernetes.manifests import manifests, render
from nemo_cdt.launch.names import job_name
from tests.launch.composed import EXPERIMENTS, SITE, run
from tests.launch.kubernetes.api_server import ApiServer, api_server

MODEL = ("data.path=data/rows.jsonl", "init.hf=models/llama", "model.tokenizer=models/llama")
KINDS = {
    "job": ["launcher.kind=job", "launcher.priority=high"],
    "pytorchjob": ["launcher.kind=pytorchjob", "launcher.priority=high"],
    "trainjob": ["launcher.kind=trainjob"],
    "trainjob_before_2_2": ["launcher.kind=trainjob", "launcher.trainjob_patch=podTemplateOverrides"],
}
CONDITIONS = {"job": "Complete", "pytorchjob": "Succeeded", "trainjob": "Complete"}


def four_nodes(kind: str, *overrides: str) -> Config:
    experiment = ("experiment=rows_llama31_8b_32k", "trainer.num_nodes=4", "parallel.context=4")
    return run("launcher=kubernetes", *experiment, *MODEL, *KINDS[kind], *overrides)


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifests_of_four_nodes_are_the_golden_ones(kind, is_golden):
    config_map, *others = yaml.safe_load_all(render(four_nodes(kind)))
    config_map["data"]["config.yaml"] = "the run"  # which other tests compare

    is_golden(f"{kind}.yaml", yaml.safe_dump_all([config_map, *others], sort_keys=False))


def test_a_reader_of_the_manifests_sees_the_configuration_line_by_line():
    assert "  config.yaml: |\n    name: rows_llama31_8b_32k\n" in render(four_nodes("job"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_experiment_renders_strictly_valid_manifests(experiment, kind):
    config = run("launcher=kubernetes", f"experiment={experiment}", *MODEL, *KINDS[kind])

    for manifest in yaml.safe_load_all(render(config)):
        assert_valid(manifest)


def assert_valid(manifest: dict[str, Any]) -> None:
    """By Kubernetes' schemas, or by the operators' models: those drop a field that they do not know."""
    if manifest["kind"] == "TrainJob":
        overrides = manifest["spec"].pop("podTemplateOverrides", [])  # no longer in the models
        assert TrainerV1alpha1TrainJob.from_dict(manifest).to_dict() == manifest
        for override in overrides:
            assert override.keys() == {"targetJobs", "metadata", "spec"}
            assert {key for container in override["spec"]["containers"] for key in container} == {
                "name",
                "volumeMounts",
            }
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": override["metadata"], "spec": override["spec"]}
            kubernetes_validate.validate(pod, "1.31", strict=True)
    elif manifest["kind"] == "PyTorchJob":
        client = ApiClient()
        read = client.deserialize(SimpleNamespace(data=json.dumps(manifest)), "KubeflowOrgV1PyTorchJob")
        assert client.sanitize_for_serialization(read) == manifest
    else:
        kubernetes_validate.validate(manifest, "1.31", strict=True)


@pytest.mark.parametrize("kind", ["job", "pytorchjob", "trainjob"])
def test_an_unknown_field_is_noticed(kind):
    *_, manifest = manifests(four_nodes(kind))
    manifest["spec"]["nodePools"] = ["a"]

    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        assert_valid(manifest)


def test_what_kubernetes_reads_is_the_run(tmp_path):
    config = four_nodes("job")
    config_map, *_ = yaml.safe_load_all(render(config))
    (tmp_path / "config.yaml").write_text(config_map["data"]["config.yaml"])

    assert load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_is_there_by_reference_only(kind):
    *_, job = manifests(four_nodes(kind))

    reference = '"valueFrom": {"secretKeyRef": {"name": "tokens", "key": "hf"}}'
    assert f'{{"name": "HF_TOKEN", {reference}}}' in json.dumps(job)


def test_a_dollar_in_a_value_is_no_variable():
    *_, job = manifests(four_nodes("job", "+launcher.env.SUM='$(HF_TOKEN)'"))

    assert {"name": "SUM", "value": "$$(HF_TOKEN)"} in job["spec"]["template"]["spec"]["containers"][0]["env"]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.chdir(tmp_path)
    with api_server() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
        yield server


def job_of(cluster: ApiServer) -> dict[str, Any]:
    return next(found for path, found in cluster.objects.items() if path.startswith("/apis/"))


@pytest.mark.parametrize("kind", CONDITIONS)
def test_a_job_is_submitted_watched_and_cancelled(kind, cluster, capsys):
    config = four_nodes(kind, "launcher.follow=false")
    name, run_folder = job_name(config), Path(config.output)

    launch_job(config)
    assert list(cluster.objects.values()) == manifests(config)
    assert name in capsys.readouterr().out

    assert status(run_folder) == 0
    assert f"{kind} {name}: Pending" in capsys.readouterr().out

    cluster.pods = {
        f"{name}-{i}": {"labels": {"app.kubernetes.io/instance": name}, "log": f"step {i}\nhalf a li"} for i in (0, 1)
    }
    assert logs(run_folder, following=False) == 0
    assert capsys.readouterr().out == f"{name}-0: step 0\n{name}-1: step 1\n"

    condition = {"type": CONDITIONS[kind], "status": "True", "message": "all is well"}
    job_of(cluster)["status"] = {"conditions": [condition]}
    assert logs(run_folder, following=True) == 0
    assert f"{CONDITIONS[kind]} all is well" in capsys.readouterr().out

    cancel(run_folder)
    assert cluster.objects == {}


def test_a_failed_job_is_exit_code_1_and_its_reason(cluster, capsys):
    config = four_nodes("job", "launcher.follow=false")
    launch_job(config)
    why = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "exit code 2"}
    job_of(cluster)["status"] = {"conditions": [why], "failed": 1}

    assert status(Path(config.output)) == 1
    assert "Failed PodFailurePolicy exit code 2, 1 Pods failed" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit:
        logs(Path(config.output), following=True)
    assert exit.value.code == 1


def test_a_second_job_of_a_run_is_refused(cluster):
    config = four_nodes("job", "launcher.follow=false")
    launch_job(config)

    with pytest.raises(
        ValueError, match=r"output=runs/rows_llama31_8b_32k is in use by job rows-llama31-8b-32k-\w+: nem"
    ):
        require_idle(config.output)
    with pytest.raises(ValueError, match="output=runs/rows_llama31_8b_32k already has a job: nemo-cdt cancel it"):
        launch_job(config)
    cluster.objects.clear()
    require_idle(config.output)


def test_a_job_that_is_refused_leaves_nothing(cluster, tmp_path):
    cluster.refuse = "Job"

    with pytest.raises(ValueError, match="Kubernetes answers 403 Forbidden: Job is forbidden"):
        launch_job(four_nodes("job"))

    assert cluster.objects == {}
    assert not (tmp_path / "runs").exists()


def test_a_cluster_that_does_not_answer_is_one_line(cluster):
    cluster.shutdown()
    cluster.server_close()

    with pytest.raises(ValueError, match=r"output=runs/rows_llama31_8b_32k: .* does not answer"):
        launch_job(four_nodes("job"))


def test_a_context_that_is_not_in_the_kubeconfig_is_named(cluster):
    with pytest.raises(ValueError, match=r"launcher.context=nowhere: .*nowhere"):
        launch_job(four_nodes("job", "launcher.context=nowhere"))


def test_a_sweep_submits_a_job_for_each_point_and_follows_none(cluster, tmp_path):
    recipe = Path(__file__).parents[3] / "recipes/cdt_llama31.py"
    overrides = ("launcher=kubernetes", f"launcher.site={SITE}", "compare_to=null", "objective.beta=0,1")
    env = os.environ | {"KUBECONFIG": str(tmp_path / "kubeconfig")}
    subprocess.run([sys.executable, recipe, "-m", *overrides], cwd=tmp_path, env=env, check=True, timeout=300)

    jobs = [found for path, found in cluster.objects.items() if path.startswith("/apis/batch")]
    assert len({job["metadata"]["name"] for job in jobs}) == 2
    for beta in (0, 1):
        assert recall(tmp_path / f"runs/demo/objective.beta={beta}").output.endswith(f"beta={beta}")
