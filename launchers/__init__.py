"""From a run's configuration to processes that train it."""

from nemo_cdt.config import Config, LauncherName


def launch(config: Config) -> None:
    """Train ``config`` where ``launcher.name`` says. Returns when it is done, raises SystemExit when it failed."""
    match config.launcher.name:
        case LauncherName.local:
            from launchers.local import launch_local

            launch_local(config)
