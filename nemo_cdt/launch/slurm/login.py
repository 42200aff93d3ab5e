"""A shell where Slurm's commands are: on this machine, or on a login node over SSH."""

import getpass
from typing import TYPE_CHECKING

from nemo_cdt.config.launcher import Launcher

if TYPE_CHECKING:
    from nemo_run import LocalTunnel, SSHTunnel


def tunnel(launcher: Launcher, job_dir: str = "") -> "LocalTunnel | SSHTunnel":
    """A shell on the login node: this machine's, or one over SSH."""
    import nemo_run

    if launcher.host is None:
        return nemo_run.LocalTunnel(job_dir=job_dir)
    user = launcher.user or getpass.getuser()
    return nemo_run.SSHTunnel(host=launcher.host, user=user, identity=launcher.identity, job_dir=job_dir)


def connected(launcher: Launcher) -> "LocalTunnel | SSHTunnel":
    """Raises ValueError where nobody answers at ``launcher.host``, or lets us in."""
    shell = tunnel(launcher)
    try:
        shell.connect()
    except OSError as error:
        raise ValueError(f"launcher.host={launcher.host} cannot be reached: {error}") from error
    except SystemExit as error:  # of NeMo-Run, after it has asked for a password
        raise ValueError(
            f"launcher.host={launcher.host} does not let {launcher.user or getpass.getuser()} in: set launcher.user "
            "and launcher.identity so that ssh works without a question"
        ) from error
    return shell
