"""A real Slurm of two virtual nodes, on which the demo runs, is preempted and goes on: .ci/run installs it."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nemo_cdt.launch.slurm.cluster import _place
from tests.launch.slurm import slurm_lab

ROOT = Path(__file__).parents[3]
SMALL = (
    *("trainer.max_steps=6", "trainer.val_interval=3", "data.validation_samples=4", "trainer.checkpoint_interval=2"),
    *("data.seq_length=640", "model.hidden_size=64", "model.ffn_hidden_size=128", "model.num_layers=2"),
    *(
        "optim.warmup_steps=1",
        "trainer.async_save=false",
        "compare_to=null",
        "report=false",
        "export.hf=null",
        "trainer.accelerator=cpu",
    ),
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Slurm's environment, and a HOME from which ``ssh login`` reaches it."""
    if lacking := slurm_lab.missing():
        pytest.skip(f"a real Slurm needs {', '.join(lacking)}: .ci/run installs it, as root")
    lab = tmp_path_factory.mktemp("slurm")
    with slurm_lab.slurm(lab) as env, slurm_lab.login(lab, env, "login") as home:
        yield env | {"HOME": str(home), "PATH": f"{home}/bin:{env['PATH']}"}


@pytest.fixture
def recipe(cluster: dict[str, str], tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    site = {"account": "lab", "partition": "debug", "python": sys.executable, "request_gpus": False}
    site["setup"] = [f"export PYTHONPATH={ROOT}", "export OMP_NUM_THREADS=1"]
    (tmp_path / "site.yaml").write_text(json.dumps({"slurm": site}))
    env = cluster | {"NEMO_CDT_SITE": str(tmp_path / "site.yaml"), "PYTHONPATH": str(ROOT)}

    def start(*overrides: str) -> "subprocess.Popen[str]":
        command = [sys.executable, str(ROOT / "recipes/cdt_llama31.py"), "launcher=slurm", *SMALL, *overrides]
        return subprocess.Popen(
            command,
            env=env,
            cwd=tmp_path,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    return start


def verb(env: dict[str, str], *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from nemo_cdt.cli import main; raise SystemExit(main())", *arguments]
    return subprocess.run(command, env=env | {"PYTHONPATH": str(ROOT)}, cwd=cwd, text=True, capture_output=True)


def final_weights(output: Path) -> dict[str, bytes]:
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = dcp.FileSystemReader(output / "checkpoints/last/weights")
    entries = reader.read_metadata().state_dict_metadata
    found = {k: torch.empty(v.size) for k, v in entries.items() if isinstance(v, TensorStorageMetadata)}
    dcp.load(found, storage_reader=reader, no_dist=True)
    return {name: tensor.numpy().tobytes() for name, tensor in found.items()}


def test_the_demo_runs_on_two_nodes_and_a_preempted_one_ends_with_the_same_weights(cluster, recipe, tmp_path):
    """One through NeMo-Run over SSH; one by our script, in a container's options, preempted after a checkpoint."""
    away = ("launcher.host=login", "launcher.user=root", f"launcher.workdir={tmp_path}/away")
    plain = recipe("name=plain", "trainer.num_nodes=2", "launcher.submit=nemo_run", *away)
    out, _ = plain.communicate(timeout=600)
    assert plain.returncode == 0, out
    assert "COMPLETED" in out

    (tmp_path / "nemo.sqsh").touch()
    pyxis = ("launcher.image=nemo.sqsh", "launcher.mounts=[/tmp:/tmp]")
    preempted = recipe("name=preempted", "trainer.num_nodes=2", "launcher.submit=sbatch", *pyxis)
    wait_for(tmp_path / "runs/preempted/checkpoints/last", preempted)
    (identity,) = json.loads((tmp_path / "runs/preempted/job.json").read_text())["ids"]
    subprocess.run(["scancel", "--signal=TERM", identity], env=cluster, check=True)
    out, _ = preempted.communicate(timeout=600)

    assert preempted.returncode == 0, out
    assert re.search(r"stopped by SIGTERM with \d steps saved", out), out
    assert restarts(cluster, identity) == 1
    assert final_weights(tmp_path / "runs/preempted") == final_weights(tmp_path / "away/runs/plain")

    shown = verb(cluster, "status", "runs/preempted", cwd=tmp_path)
    assert (shown.returncode, f"job {identity}: COMPLETED" in shown.stdout) == (0, True)
    log = verb(cluster, "logs", "runs/plain", cwd=tmp_path).stdout
    assert "step 6/6" in log
    assert "validation after step 6/6  loss" in log


def test_a_chain_goes_on_where_a_job_was_ended_and_an_array_trains_each_seed(cluster, recipe, tmp_path):
    long = ("trainer.max_steps=40", "trainer.checkpoint_interval=10")  # so that it still trains when it is told to end
    chain = recipe("name=chain", "launcher.submit=sbatch", "launcher.chain=4", "launcher.requeues=0", *long)
    array = recipe("name=array", "launcher.submit=nemo_run", "launcher.array=1-2", "trainer.max_steps=2")
    wait_for(tmp_path / "runs/chain/checkpoints/last", chain)
    ids = json.loads((tmp_path / "runs/chain/job.json").read_text())["ids"]
    subprocess.run(["scancel", "--signal=TERM", ids[0]], env=cluster, check=True)
    out, _ = chain.communicate(timeout=600)

    assert chain.returncode == 0, out
    saved = int(re.search(r"stopped by SIGTERM with (\d+) steps saved", out)[1])
    assert steps_of(tmp_path / "runs/chain") == [*range(1, 41)]
    assert saved < 40
    wait_until_left(cluster, ids)
    shown = verb(cluster, "status", "runs/chain", cwd=tmp_path).stdout
    # accounting may know nothing of a job that was cancelled before its turn
    states = [state_of(identity, shown) or "CANCELLED" for identity in ids]
    assert states == ["FAILED", "COMPLETED", "CANCELLED", "CANCELLED"]
    again = verb(cluster, "cancel", "runs/chain", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (2, "error: runs/chain does not run: its job has ended\n")

    out, _ = array.communicate(timeout=600)
    assert array.returncode == 0, out
    weights = [final_weights(tmp_path / f"runs/array/seed={seed}") for seed in (1, 2)]
    assert weights[0] != weights[1]
    assert verb(cluster, "status", "runs/array", cwd=tmp_path).stdout.count("COMPLETED") == 2


def steps_of(output: Path) -> list[int]:
    rows = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if "loss" in row]


def state_of(identity: str, status: str) -> str | None:
    found = re.search(rf"job {identity}: (\w+)", status)
    return found and found[1]


def wait_until_left(env: dict[str, str], ids: list[str]) -> None:
    deadline = time.monotonic() + 120
    while set(ids) & set(
        subprocess.run(["squeue", "-h", "-o", "%A"], env=env, text=True, capture_output=True).stdout.split()
    ):
        assert time.monotonic() < deadline, f"{ids} are still in the queue"
        time.sleep(0.5)


def restarts(env: dict[str, str], identity: str) -> int:
    shown = subprocess.run(["scontrol", "show", "job", identity], env=env, text=True, capture_output=True).stdout
    return int(re.search(r"Restarts=(\d+)", shown)[1])


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 600
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.05)


def test_a_mistake_ends_all_jobs_and_a_running_one_keeps_its_output_and_is_cancelled(cluster, recipe, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"question": 3}')
    bad = ("data=jsonl", "data.path=bad.jsonl", "trainer.val_interval=0", "launcher.chain=3")
    submits = ("sbatch", "nemo_run")
    mistaken = [recipe(f"name=by_{submit}", f"launcher.submit={submit}", *bad) for submit in submits]
    endless = ("name=endless", "trainer.max_steps=100000", "launcher.submit=sbatch", "launcher.chain=2")
    running = recipe(*endless)
    wait_for(tmp_path / "runs/endless/job.json", running)

    second = recipe(*endless)
    out, _ = second.communicate(timeout=600)
    ids = " ".join(json.loads((tmp_path / "runs/endless/job.json").read_text())["ids"])
    assert (second.returncode, len(ids.split())) == (2, 2)
    assert f"error: output=runs/endless is in use by job {ids}: nemo-cdt cancel runs/endless, or set ano" in out

    assert verb(cluster, "cancel", "runs/endless", cwd=tmp_path).returncode == 0
    out, _ = running.communicate(timeout=600)
    assert running.returncode == 1, out
    assert "CANCELLED" in out
    assert b"endless" not in subprocess.run(["squeue", "-h", "-o", "%j"], env=cluster, capture_output=True).stdout

    for process, submit in zip(mistaken, submits, strict=True):
        out, _ = process.communicate(timeout=600)
        assert process.returncode == 1
        assert out.count("error: bad.jsonl:1: has ['question']; a row needs") == 1, out
        assert out.count("exit code 2:0") == 1, out
        assert f"the job of output=runs/by_{submit} ended before its run did, as told above: nothing was saved" in out
        first, *others = json.loads((tmp_path / f"runs/by_{submit}/job.json").read_text())["ids"]
        assert restarts(cluster, first) == 0
        shown = verb(cluster, "status", f"runs/by_{submit}", cwd=tmp_path).stdout
        # accounting may know nothing of a job that was cancelled before its turn
        assert {state_of(other, shown) for other in others} <= {"CANCELLED", None}


@pytest.mark.parametrize("submit", ["sbatch", "nemo_run"])
def test_what_slurm_refuses_is_one_line_and_leaves_nothing(submit, recipe, tmp_path):
    refused = recipe("launcher.partition=nowhere", f"launcher.submit={submit}")
    out, _ = refused.communicate(timeout=600)

    assert refused.returncode == 2, out
    assert re.search(r"^error: sbatch failed: .*invalid partition specified: nowhere", out, re.MULTILINE)
    assert not (tmp_path / "runs/tiny").exists()


@pytest.mark.parametrize("submit", ["sbatch", "nemo_run"])
@pytest.mark.parametrize("host", [None, "login"])
def test_what_slurm_refuses_takes_nothing_of_the_users_with_it(submit, host, recipe, tmp_path):
    """Here OUTPUT has what no run would write; over SSH, where it cannot be seen before, also a folder for Slurm."""
    away = ("launcher.host=login", "launcher.user=root", f"launcher.workdir={tmp_path}/away") if host else ()
    output = Path(tmp_path, "away" if host else "", "runs/a=1")
    kept = ["notes.txt", *(["slurm/mine.out", "slurm/experiments/mine/x"] if host else [])]
    for name in kept:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("mine")

    chosen = ('output="runs/a=1"', "launcher.partition=nowhere", "launcher.chain=2", f"launcher.submit={submit}")
    refused = recipe(*chosen, *away)
    out, _ = refused.communicate(timeout=600)

    assert refused.returncode == 2, out
    assert "invalid partition specified: nowhere" in out
    assert sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()) == sorted(kept)
    assert not (output / "config.yaml").exists()


@pytest.mark.parametrize(
    ("user", "host", "expected"),
    [
        ("root", "nowhere.invalid", "launcher.host=nowhere.invalid cannot be reached"),
        ("nobody", "login", "launcher.host=login does not let nobody in"),
    ],
)
def test_a_login_node_that_does_not_let_us_in_is_one_line(user, host, expected, recipe, tmp_path):
    refused = recipe(f"launcher.host={host}", f"launcher.user={user}", f"launcher.workdir={tmp_path}")
    out, _ = refused.communicate(timeout=600)

    assert refused.returncode == 2, out
    assert f"error: {expected}" in out, out
    assert list(tmp_path.iterdir()) == [tmp_path / "site.yaml"]


def test_logs_are_those_of_the_job_the_runs_own_after_what_nemo_run_echoes():
    names = ["9.out", "3.out", "12_1.out", "log-a-1f2e.train-1_10_1.out", "sbatch_a-1f2e.train-1_10.out", "10.out.old"]

    told = sorted(filter(None, (_place(f"runs/slurm/{name}", ["12", "10", "3"]) for name in names)))

    expected = ["12_1.out", "sbatch_a-1f2e.train-1_10.out", "log-a-1f2e.train-1_10_1.out", "3.out"]
    assert [Path(path).name for *_, path in told] == expected
