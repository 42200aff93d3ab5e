"""A real Slurm of two virtual nodes with accounting, on loopback, of Debian's packages: for the tests that need one.

Its daemons, keys and ports are its own; :func:`slurm` ends what it started, by process id, last first.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = (
    *("munged", "mariadbd", "mariadb", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "gcc"),
    *("sshd", "ssh-keygen", "rsync"),
)


def missing() -> list[str]:
    """What this machine lacks: .ci/run installs it."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    lacking = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    return lacking or ([] if os.geteuid() == 0 else ["root"])


@contextmanager
def slurm(lab: Path) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands speak to it."""
    env = os.environ | {"SLURM_CONF": f"{lab}/slurm.conf", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    for folder in ("munge", "spool/ctld", "log", "run"):
        (lab / folder).mkdir(parents=True)
    lab.chmod(0o755)
    ports = dict(zip(("ctld", "slurmd", "dbd", "sql", "n1", "n2"), map(str, _free_ports(6)), strict=True))
    _configure(lab, ports, env)
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        log = (lab / f"log/{Path(command[0]).name}{len(started)}.out").open("wb")
        started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True))

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=env, capture_output=True, text=True)

    try:
        _start(lab, ports, start, run)
        yield env
    finally:
        run("scancel", "--user=root", "--signal=KILL", "--full")
        run("scancel", "--user=root")
        with suppress(TimeoutError):
            _until(lambda: not run("squeue", "-h").stdout, "an empty queue")
        for daemon in reversed(started):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@contextmanager
def login(lab: Path, env: dict[str, str], name: str) -> Iterator[Path]:
    """An SSH server where Slurm's commands are; a home whose SSH configuration knows it as ``name``.

    OpenSSH's client asks no HOME, so that ``home/bin`` has one that does: put it on the PATH.
    """
    home, (port,) = lab / "home", _free_ports(1)
    (home / ".ssh").mkdir(parents=True)
    (home / "bin").mkdir()
    (home / "bin/ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {home}/.ssh/config "$@"\n')
    (home / "bin/ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    for key in (lab / "host_key", home / ".ssh/id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    entry = f"Host {name}\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {home}/.ssh/id_ed25519\n"
    entry += f"Host *\n  StrictHostKeyChecking accept-new\n  UserKnownHostsFile {home}/.ssh/known_hosts\n"
    (home / ".ssh/config").write_text(entry)
    (lab / "sshd_config").write_text(f"""
Port {port}
ListenAddress 127.0.0.1
HostKey {lab}/host_key
AuthorizedKeysFile {home}/.ssh/id_ed25519.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
SetEnv SLURM_CONF={env["SLURM_CONF"]} PATH={env["PATH"]}
""")
    sshd = shutil.which("sshd", path=env["PATH"])
    daemon = subprocess.Popen([sshd, "-D", "-f", lab / "sshd_config", "-E", lab / "log/sshd.log"])
    try:
        yield home
    finally:
        daemon.terminate()
        daemon.wait()


def _start(lab: Path, ports: dict[str, str], start: Callable[..., None], run: Callable) -> None:
    start("munged", "--foreground", "--force", *(f"--{k}={lab}/munge/{v}" for k, v in MUNGE.items()))
    run("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={lab}/mysql", "--skip-test-db")
    sql = ("mariadb", "--no-defaults", f"--socket={lab}/run/sql")
    start(
        *("mariadbd", "--no-defaults", "--user=root", f"--datadir={lab}/mysql", f"--socket={lab}/run/sql"),
        *(f"--pid-file={lab}/run/sql.pid", "--bind-address=127.0.0.1", f"--port={ports['sql']}"),
        *("--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"),
    )
    _until(lambda: run(*sql, "-e", "select 1").returncode == 0, "mariadbd")
    grant = "create user lab@'127.0.0.1' identified by 'lab'; grant all on *.* to lab@'127.0.0.1'"
    assert run(*sql, "-e", grant).returncode == 0
    start("slurmdbd", "-D")
    _until(lambda: run("sacctmgr", "-n", "list", "cluster").returncode == 0, "slurmdbd")
    for what in ("cluster lab", "account lab Cluster=lab", "user root Account=lab"):
        run("sacctmgr", "-i", "-n", "add", *what.split())
    start("slurmctld", "-D")
    _until(lambda: "UP" in run("scontrol", "ping").stdout, "slurmctld")
    for node in ("n1", "n2"):
        start("slurmd", "-D", "-N", node)
    _until(lambda: run("sinfo", "-h", "-o", "%t").stdout.split() == ["idle"], "slurmd")


MUNGE = {
    "socket": "socket",
    "key-file": "key",
    "pid-file": "pid",
    "log-file": "log",
    "seed-file": "seed",
}


def _configure(lab: Path, ports: dict[str, str], env: dict[str, str]) -> None:
    host = socket.gethostname().split(".")[0]
    (lab / "munge/key").write_bytes(os.urandom(1024))
    (lab / "munge/key").chmod(0o400)
    (lab / "munge").chmod(0o711)
    # a job that is requeued waits until its old credential has expired: two minutes, left to itself
    auth = f"AuthType=auth/munge\nAuthInfo=socket={lab}/munge/socket,cred_expire=20\nSlurmUser=root\n"
    (lab / "slurm.conf").write_text(f"""{auth}
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmdUser=root
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=60
SlurmctldPidFile={lab}/run/ctld.pid
SlurmdPidFile={lab}/run/slurmd.%n.pid
SlurmdSpoolDir={lab}/spool/slurmd.%n
StateSaveLocation={lab}/spool/ctld
SlurmctldLogFile={lab}/log/slurmctld.log
SlurmdLogFile={lab}/log/slurmd.%n.log
SlurmctldPort={ports["ctld"]}
SlurmdPort={ports["slurmd"]}
SwitchType=switch/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={host}
AccountingStoragePort={ports["dbd"]}
AccountingStoragePass={lab}/munge/socket
SchedulerParameters=batch_sched_delay=0,sched_interval=2
PlugStackConfig={lab}/plugstack.conf
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports["n1"]} CPUs={os.cpu_count()} State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports["n2"]} CPUs={os.cpu_count()} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
""")
    (lab / "slurmdbd.conf").write_text(f"""{auth}
DbdHost={host}
DbdPort={ports["dbd"]}
LogFile={lab}/log/slurmdbd.log
PidFile={lab}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports["sql"]}
StorageUser=lab
StoragePass=lab
StorageLoc=slurm_acct
""")
    (lab / "slurmdbd.conf").chmod(0o600)
    (lab / "cgroup.conf").write_text("CgroupAutomount=no\n")
    source = Path(__file__).with_name("pyxis.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", lab / "pyxis.so", source], check=True, env=env)
    (lab / "plugstack.conf").write_text(f"required {lab}/pyxis.so\n")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _until(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come")
        time.sleep(0.2)
