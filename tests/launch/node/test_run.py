"""What a node does for its scheduler: torchrun, its end in words and an exit code, and two nodes of which one dies."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from nemo_cdt.config import Accelerator, Config, Export, load, save
from nemo_cdt.config.launcher import Launcher, LauncherName
from nemo_cdt.launch.node.place import Place
from nemo_cdt.launch.node.run import of_array_task
from nemo_cdt.utils.lock import held
from nemo_cdt.validation import validate_layout
from tests.launch.composed import run

ROOT = Path(__file__).parents[3]
CODE = "from nemo_cdt.launch.node import run, torchrun; torchrun.WORKER = {worker!r}; run.main()"


def node(config: Config, tmp_path: Path, worker: str = "tests.launch.node.ranks") -> "subprocess.CompletedProcess[str]":
    save(config, tmp_path / "job.yaml")
    env = os.environ | {"NNODES": "1", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command = [sys.executable, "-c", CODE.format(worker=worker), str(tmp_path / "job.yaml")]
    return subprocess.run(command, env=env | {"PYTHONPATH": str(ROOT)}, text=True, capture_output=True, timeout=300)


def config(tmp_path: Path, name: str, restarts: int, hang_timeout: int | None = None) -> Config:
    launcher = Launcher(name=LauncherName.slurm, max_restarts=restarts, hang_timeout=hang_timeout)
    made = Config(name=name, output=str(tmp_path / "run"), report=False, launcher=launcher)
    made.trainer.devices = 2
    return made


@pytest.mark.parametrize(
    ("name", "restarts", "code", "expected"),
    [
        ("killed", 0, 1, r"error: rank 1 on \S+ failed with SIGKILL. Nothing was saved"),
        (
            "always",
            1,
            1,
            r"error: rank 1 on \S+ failed with exit code 1: RuntimeError: found NaN in local grad norm. No",
        ),
        ("mistake", 0, 2, r""),
        ("preempted", 0, 143, r""),
        ("killed", 1, 0, r""),
    ],
)
def test_the_end_is_an_exit_code_and_a_line_that_names_the_rank(tmp_path, name, restarts, code, expected):
    done = node(config(tmp_path, name, restarts), tmp_path)

    assert done.returncode == code, done.stderr
    assert re.search(expected, done.stderr.splitlines()[-1] if done.stderr else "")
    assert ("attempt 1" in done.stdout) == (restarts == 1)


def test_the_first_node_of_a_second_job_for_one_output_exits_with_2(tmp_path):
    with held(tmp_path / "run"):
        done = node(config(tmp_path, "killed", 1), tmp_path)

    assert done.returncode == 2, done.stderr
    assert f"error: output={tmp_path}/run is in use by process {os.getpid()} on" in done.stderr
    assert "rank 0" not in done.stdout


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("killed", "ended before the run did|failed with SIGKILL"),
        ("always", "ended before the run did|failed with exit code 1"),
        ("hangs", r".*\(launcher.hang_timeout=5 seconds without a sign of it, or no memory left\?\)"),
    ],
)
def test_a_rank_that_fails_when_another_has_ended_well_fails_the_job(tmp_path, name, expected):
    """nvidia-resiliency-ext itself takes that for a success."""
    done = node(config(tmp_path, name, restarts=0, hang_timeout=5), tmp_path)

    assert done.returncode == 1, done.stderr
    assert re.match(rf"error: rank 1 on \S+ ({expected}).*\. Nothing was saved", done.stderr.splitlines()[-1])


def test_a_rank_that_hangs_is_ended_and_all_start_again(tmp_path):
    done = node(config(tmp_path, "hangs", restarts=1, hang_timeout=4), tmp_path)

    assert done.returncode == 0, done.stderr
    assert "rank 1, attempt 0" in done.stdout
    assert "rank 1, attempt 1" in done.stdout


def test_a_task_of_an_array_is_a_seed_in_a_folder_of_its_own():
    task = of_array_task(Config(name="a", output="runs/a", export=Export(hf="runs/a/hf")), "7")

    assert (task.name, task.output, task.trainer.seed) == ("a/seed=7", "runs/a/seed=7", 7)
    assert task.export.hf == "runs/a/hf/seed=7"


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[Callable[[int, Path], "subprocess.Popen[str]"]]:
    """Two network namespaces with a cable between them; starts nemo_cdt.launch.node in one of them."""
    names, started = [f"cdt{os.getpid()}{end}" for end in "ab"], []
    if subprocess.run(["ip", "netns", "add", names[0]], capture_output=True).returncode:
        pytest.skip("network namespaces need root and iproute2")
    ip(f"netns add {names[1]}")
    ip(f"link add {names[0]} netns {names[0]} type veth peer name {names[1]} netns {names[1]}")
    for index, name in enumerate(names):
        # what `ip netns exec` shows as /etc/hosts: without it each look-up of a peer's name waits for a lost server
        hosts = Path(f"/etc/netns/{name}/hosts")
        hosts.parent.mkdir(parents=True)
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"10.98.0.{i + 1} {n}\n" for i, n in enumerate(names)))
        ip(f"-n {name} addr add 10.98.0.{index + 1}/24 dev {name}")
        ip(f"-n {name} link set {name} up")
        ip(f"-n {name} link set lo up")

    def start(rank: int, file: Path) -> "subprocess.Popen[str]":
        meet = {"NNODES": "2", "NODE_RANK": str(rank), "MASTER_ADDR": "10.98.0.1", "GLOO_SOCKET_IFNAME": names[rank]}
        log = (tmp_path / f"node{rank}.{len(started)}.log").open("w")
        command = ["ip", "netns", "exec", names[rank], sys.executable, "-m", "nemo_cdt.launch.node", str(file)]
        env = os.environ | meet | {"PYTHONPATH": str(ROOT)}
        started.append(
            subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        )
        return started[-1]

    yield start
    for process in started:
        end_all(process)
    for name in names:
        ip(f"netns del {name}")
        shutil.rmtree(f"/etc/netns/{name}")


def ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


def end_all(process: "subprocess.Popen[str]") -> None:
    """The node and what it started: torchrun gives each rank a session of its own."""
    found = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], text=True, capture_output=True).stdout.splitlines()
    parents = {int(pid): int(parent) for pid, parent in map(str.split, found)}
    family = [process.pid]
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    for pid in reversed(family):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def test_a_node_dies_and_the_run_goes_on_when_it_is_back(two_nodes, tmp_path):
    made = run("launcher=slurm", "launcher.host=h", "launcher.workdir=/w", *SMALL)
    made.launcher = Launcher(name=LauncherName.slurm, max_restarts=3, hang_timeout=None, grace=5)
    made.output = str(tmp_path / "run")
    save(made, tmp_path / "job.yaml")

    first, second = two_nodes(0, tmp_path / "job.yaml"), two_nodes(1, tmp_path / "job.yaml")
    wait_for(tmp_path / "run/checkpoints/last", first, tmp_path)
    end_all(second)
    again = two_nodes(1, tmp_path / "job.yaml")

    assert first.wait(timeout=400) == 0, (tmp_path / "node0.0.log").read_text()
    assert again.wait(timeout=60) == 0
    assert os.readlink(tmp_path / "run/checkpoints/last") == "step=40"
    rows = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows if "loss" in row] == [*range(1, 41)]
    assert (tmp_path / "node0.0.log").read_text().count("Training on the CPU") == 2


SMALL = (
    *("trainer.num_nodes=2", "trainer.max_steps=40", "trainer.val_interval=0", "trainer.checkpoint_interval=10"),
    *("data.seq_length=640", "model.hidden_size=64", "model.ffn_hidden_size=128", "model.num_layers=2"),
    *("compare_to=null", "report=false", "export.hf=null", f"trainer.accelerator={Accelerator.cpu}"),
)


def wait_for(path: Path, process: "subprocess.Popen[str]", logs: Path) -> None:
    deadline = time.monotonic() + 400
    while not path.exists():
        told = "\n".join(file.read_text() for file in logs.glob("*.log"))
        assert process.poll() is None, told
        assert time.monotonic() < deadline, told
        time.sleep(0.02)


def test_the_readmes_task_of_skypilot_makes_a_run_and_says_where_nodes_meet(tmp_path, monkeypatch):
    text = (ROOT / "launchers/README.md").read_text()
    task = yaml.safe_load(textwrap.dedent(re.search(r"^    name: cdt\n(    .*\n)+", text, re.MULTILINE)[0]))
    *lines, start = task["run"].strip().splitlines()
    script = "\n".join(lines).replace("python ", f"{sys.executable} ", 1).replace("recipes/", f"{ROOT}/recipes/")
    sky = {"SKYPILOT_NUM_NODES": "4", "SKYPILOT_NODE_RANK": "2", "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8"}

    command, env = ["bash", "-ec", f"{script}\nenv"], os.environ | sky
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)

    env = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    place = Place.of({key: env[key] for key in ("NNODES", "NODE_RANK", "MASTER_ADDR")})
    assert (place.nodes, place.rank, place.address) == (4, 2, "10.0.0.7")
    config = load(tmp_path / "run.yaml")
    assert (config.trainer.num_nodes, config.trainer.devices, config.output) == (task["num_nodes"], 8, "/data/runs/cdt")
    config.launcher.name = LauncherName.slurm  # local has one node
    validate_layout(config)
    assert Path("/data") in Path(config.output).parents
    assert task["volumes"].keys() == {"/data"}  # a bucket in file_mounts would be a copy on each node
    assert start == "python -m nemo_cdt.launch.node run.yaml"
