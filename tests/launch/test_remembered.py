"""job.json and the site's file, whatever is in them: nothing of them is run, expanded or connected to."""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from omegaconf import OmegaConf

from nemo_cdt.config import Config, save
from nemo_cdt.config.launcher import Launcher, LauncherName
from nemo_cdt.launch.job import Job
from nemo_cdt.launch.jobs import cancel, logs, status
from nemo_cdt.launch.remembered import JOB, recall, remember
from nemo_cdt.launch.site import with_site
from nemo_cdt.launch.slurm import cluster
from tests.fuzzing import both, mutations, outcomes, watched

SLURM = Launcher(name=LauncherName.slurm, account="lab", partition="debug", env={"A": "b"}, setup=["x=${HOME}"])
LOCAL = Launcher()
COMMANDS = re.compile(
    r"squeue --noheader --format=%A --jobs='?[0-9,]+'?"
    r"|sacct --allocations --parsable2 --format=[A-Za-z,]+ --jobs='?[0-9,]+'?"
    r"|scancel [0-9 ]+"
    r"|find '?[\w/. =+,-]+/slurm'? -type f -name '\*\.out' -size \+0"
)


def job(launcher: Launcher = SLURM, ids: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    made = asdict(Job(launcher, "runs/a", ids or ["12", "13"]))
    return made | {"launcher": made["launcher"] | changes}


class Answer:
    return_code, stdout, stderr = 0, "", ""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a cluster is asked, by a shell that runs nothing; and to whom it would connect."""
    found: list[str] = []

    class Shell:
        def __init__(self, launcher: Launcher) -> None:
            found.append(f"connect {launcher.user}@{launcher.host} with {launcher.identity}")

        def run(self, command: str, **_: object) -> Answer:
            found.append(command)
            return Answer()

    monkeypatch.setattr(cluster, "connected", Shell)
    monkeypatch.setattr(cluster, "nemo_run_home", lambda: None)
    return found


def test_what_is_remembered_is_recalled_as_it_was_written(tmp_path):
    for launcher, ids in ((SLURM, ["12", "13"]), (LOCAL, ["77", "1800000000.25"])):
        remember(Job(launcher, str(tmp_path), ids))
        assert recall(tmp_path) == Job(launcher, str(tmp_path), ids)


REFUSED: list[tuple[Any, str]] = [
    ([], "must hold a JSON object, not []"),
    ("x", "must hold a JSON object"),
    ({}, "it has no launcher"),
    (job() | {"more": 1}, "'more' is no key of it"),
    (job(ids=["1; touch executed"]), 'ids=["1; touch executed"] are none of launcher=slurm'),
    (job(ids=["$(touch executed)"]), "are none of launcher=slurm"),
    (job(ids=["--jobs=1"]), "are none of launcher=slurm"),
    (job(ids=["١٢"]), "are none of launcher=slurm"),
    (job() | {"ids": []}, "are none of launcher=slurm"),
    (job() | {"ids": [12]}, "are none of launcher=slurm"),
    (job() | {"ids": "12"}, "its ids must be list"),
    (job() | {"output": None}, "its output must be str"),
    (job(LOCAL, ["1", "x"]), "are none of launcher=local"),
    (job(LOCAL, ["99999999999999999999", "1"]), "are none of launcher=local"),
    (job(LOCAL, ["1"]), "are none of launcher=local"),
    (job(host="${oc.env:HOME}", workdir="/w"), "launcher.host='${oc.env:HOME}' is no value for it"),
    (job(host="-oProxyCommand=touch executed", workdir="/w"), "is no value for it"),
    (job(host="-oProxyCommand=id", workdir="/w"), "launcher.host='-oProxyCommand=id' is no value for it"),
    (job(host="a;id", workdir="/w"), "is no value for it"),
    (job(host="login", workdir="/w", user="-l"), "launcher.user='-l' is no value for it"),
    (job(host="login", workdir="/w", identity="-i"), "launcher.identity='-i' is no value for it"),
    (job(host="login", workdir="/w") | {"output": "a; touch executed"}, "output='a; touch executed' with launcher=sl"),
    (job(host="login", workdir="/w; id"), "launcher.workdir='/w; id' is no value for it"),
    (job(host="\ud800", workdir="/w"), "launcher.host='\\ud800' has a line break or a control character"),
    (job(name="x"), 'launcher.name is "x", which is no value of it'),
    (job(chain=True), "launcher.chain is true, which is no value of it"),
    (job(chain=10**30), "which is no value of it"),
    (job(env={"A": 1}), "launcher.env is 1, which is no value of it"),
    (job(more=1), "'more' is no key of a launcher"),
]


@pytest.mark.parametrize(("found", "expected"), REFUSED, ids=range(len(REFUSED)))
def test_a_file_that_no_launcher_wrote_is_one_line_and_asks_nobody(tmp_path, asked, found, expected):
    (tmp_path / JOB).write_text(json.dumps(found))

    for verb in (recall, status, cancel):
        with pytest.raises(ValueError, match=re.escape(expected)) as raised:
            verb(tmp_path)
        assert str(raised.value).startswith(f"{tmp_path / JOB}: ")
        assert "\n" not in str(raised.value)
    assert asked == []


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda file: file.mkdir(), "is no file|Is a directory"),
        (lambda file: file.symlink_to("/etc/passwd"), "it is no JSON"),
        (lambda file: file.symlink_to("/dev/zero"), "it is no file"),
        (lambda file: file.symlink_to("nowhere"), "No such file"),
        (lambda file: os.mkfifo(file), "it is no file"),
        (lambda file: file.write_bytes(b'{"ids": "\xff"}'), "it is no UTF-8 text"),
        (lambda file: file.write_text("[" * 100_000), "it is no JSON"),
        (lambda file: file.write_text(" " * 2_000_000), "bytes, more than the"),
        (lambda file: file.write_text('{"ids": ' + "9" * 10_000 + "}"), "it is no JSON"),
    ],
    ids=range(9),
)
def test_what_is_no_file_of_json_is_one_line(tmp_path, make, expected):
    make(tmp_path / JOB)

    with pytest.raises(ValueError, match=expected) as raised:
        recall(tmp_path)

    assert str(raised.value).startswith(f"{tmp_path / JOB}: ")


def test_what_a_shell_is_asked_is_quoted(tmp_path, asked):
    folder = tmp_path / "a b; touch executed"
    remember(Job(SLURM, str(folder), ["12", "13"]))

    status(folder)
    logs(folder, following=False)
    cancel(folder)

    folder_quoted = f"'{folder}/slurm'"
    assert f"find {folder_quoted} -type f -name '*.out' -size +0" in asked
    assert "scancel 12 13" in asked
    assert all(
        COMMANDS.fullmatch(command.replace(folder_quoted, "/x/slurm")) for command in asked[1:] if "@" not in command
    )


def test_slurms_commands_run_nothing_that_the_file_says(tmp_path):
    """As filed: `nemo-cdt status` and `cancel` in processes of their own, with stand-ins for Slurm's commands."""
    for name in ("squeue", "sacct", "scancel"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text('#!/bin/sh\necho "$0 $*" >> asked\n')
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / JOB).write_text(json.dumps(job(ids=["1; touch executed"])))

    done = [nemo_cdt(verb, str(tmp_path), cwd=tmp_path) for verb in ("status", "cancel")]

    assert [each.returncode for each in done] == [2, 2]
    assert all(each.stderr.startswith(f"error: {tmp_path / JOB}: its ids=") for each in done)
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "asked").exists()


def nemo_cdt(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(root), "PATH": f"{cwd}/bin:{os.environ['PATH']}"}
    command = [sys.executable, "-c", "from nemo_cdt.cli import main; raise SystemExit(main())", *arguments]
    return subprocess.run(command, env=env, cwd=cwd, text=True, capture_output=True)


@pytest.fixture
def bystander() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is no run's."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_process_that_does_not_hold_the_runs_lock_is_not_ended(tmp_path, bystander, capsys):
    started = str(psutil.Process(bystander.pid).create_time())
    remember(Job(LOCAL, str(tmp_path), [str(bystander.pid), started]))
    save(Config(output=str(tmp_path)), tmp_path / "config.yaml")
    about = {"host": os.uname().nodename, "pid": bystander.pid, "time": "now", "command": "training"}
    (tmp_path / ".lock").write_text(json.dumps(about))  # what it says is believed of nobody

    with pytest.raises(ValueError, match="does not run"):
        cancel(tmp_path)
    assert status(tmp_path) == 1

    time.sleep(0.2)
    assert bystander.poll() is None
    assert "ended early" in capsys.readouterr().out


@pytest.mark.parametrize(("launcher", "ids"), [(SLURM, ["12", "13"]), (LOCAL, ["{pid}", "{started}"])])
def test_a_damaged_job_is_one_line_and_nothing_is_run_or_ended(tmp_path, asked, bystander, monkeypatch, launcher, ids):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    started = psutil.Process(bystander.pid).create_time()
    made = job(launcher, [each.format(pid=bystander.pid, started=started) for each in ids])
    save(Config(output=str(tmp_path)), tmp_path / "config.yaml")

    def read() -> None:
        recall(tmp_path)
        status(tmp_path)
        cancel(tmp_path)

    with watched(tmp_path):
        counted = outcomes(both(made, 1000), (tmp_path / JOB).write_bytes, read, ours=str(tmp_path))

    assert counted["refused"] > 500
    assert all(COMMANDS.fullmatch(command) for command in asked if not command.startswith("connect "))
    connected = {command for command in asked if command.startswith("connect ")}
    assert not any(re.search(r"[ @]-|[;$`{|&()<>\\]", each.removeprefix("connect ")) for each in connected), connected
    assert bystander.poll() is None


SITE = """
slurm: {account: lab, partition: debug, mounts: ["/a:/b"], setup: ["module load x"], env: {A: "${oc.env:HOME}"}}
kubernetes: &k {namespace: n, image: i, workdir: /w, volumes: {claim: /data}, rdma: {x: 1}, tolerations: [{key: a}]}
"""


def as_yaml(made: Any, count: int) -> Iterator[bytes]:
    yield from both(made, count)
    yield from mutations(SITE.encode(), count)


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_a_damaged_site_is_one_line(tmp_path, name):
    file = tmp_path / "site.yaml"
    config = Config(launcher=Launcher(name=LauncherName(name), site=str(file)))
    made = OmegaConf.to_container(OmegaConf.create(SITE))

    with watched(tmp_path):
        counted = outcomes(as_yaml(made, 500), file.write_bytes, lambda: with_site(config), ours=str(file))

    assert counted["read"] > 50
    assert counted["refused"] > 300
