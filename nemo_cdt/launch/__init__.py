"""From a run's configuration to processes that train it."""

from nemo_cdt.config import Config
from nemo_cdt.config.launcher import LauncherName


def launch(config: Config) -> None:
    """Train ``config`` where ``launcher.name`` says. Returns when it is done, raises SystemExit when it failed."""
    if config.launcher.name is LauncherName.local:
        from nemo_cdt.launch.local.run import launch_local

        launch_local(config)
    else:
        from nemo_cdt.launch.jobs import launch_job

        launch_job(config)
