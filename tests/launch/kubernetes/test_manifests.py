"""Manifests: golden, and strictly validated."""

import json
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow.training.api_client import ApiClient
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from nemo_cdt.config import load
from nemo_cdt.launch.kubernetes.manifests import manifests, render
from tests.launch.composed import EXPERIMENTS, MODEL, run
from tests.launch.kubernetes.four_nodes import KINDS, four_nodes


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
