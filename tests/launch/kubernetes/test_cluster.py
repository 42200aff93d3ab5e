"""What speaks to a cluster of Kubernetes, against a stand-in for its API server."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_cdt.launch.jobs import cancel, launch_job, logs, recall, require_idle, status
from nemo_cdt.launch.kubernetes.manifests import manifests
from nemo_cdt.launch.names import job_name
from tests.launch.composed import SITE
from tests.launch.kubernetes.api_server import ApiServer, api_server
from tests.launch.kubernetes.four_nodes import four_nodes

CONDITIONS = {"job": "Complete", "pytorchjob": "Succeeded", "trainjob": "Complete"}


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
        assert recall(tmp_path / f"runs/tiny/objective.beta={beta}").output.endswith(f"beta={beta}")
