"""Train a Llama with Context Denoising Training: compose ``conf/``, validate, launch.

python recipes/cdt_llama31.py            # the demo
python recipes/cdt_llama31.py --help     # groups and keys
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from nemo_cdt.config import Config, typed
from nemo_cdt.config.errors import explain
from nemo_cdt.launch import launch
from nemo_cdt.launch.jobs import require_idle
from nemo_cdt.launch.site import site_file, with_site
from nemo_cdt.utils.user_errors import fail, reported
from nemo_cdt.validation import validate

SAME_IN_ALL = {"name", "output", "resume"}
"""Keys of a sweep that are in no point's name."""

ConfigStore.instance().store(name="schema", node=Config)


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def run(composed: DictConfig) -> None:
    with reported():
        config = with_site(_config(composed), _stated())
        if not config.launcher.dryrun:
            require_idle(config.output)
        validate(config, site=str(site_file(config)))
        launch(config)


def _config(composed: DictConfig) -> Config:
    """The run that was composed. Each point of a sweep has a folder of its own in OUTPUT, named by what is swept."""
    try:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            composed.output = str(Path(composed.output, _point(HydraConfig.get().overrides.task)))
            composed.launcher.follow = composed.launcher.follow and composed.launcher.name == "local"
        return typed(composed)
    except OmegaConfBaseException as error:
        fail(explain(error))


def _stated() -> set[str]:
    """The keys of ``launcher`` that the command line has."""
    words = OverridesParser.create().parse_overrides([*HydraConfig.get().overrides.task])
    return {word.key_or_group.removeprefix("launcher.") for word in words if word.key_or_group.startswith("launcher.")}


def _point(overrides: Sequence[str]) -> str:
    """A point of a sweep by what sets it apart from the others, in no order of the command line's."""
    parser = OverridesParser.create()
    typed_in = parser.parse_overrides([word for word in sys.argv[1:] if "=" in word and not word.startswith("-")])
    swept = {override.key_or_group for override in typed_in if override.is_sweep_override()} - SAME_IN_ALL
    apart = (o.input_line or "" for o in parser.parse_overrides([*overrides]) if o.key_or_group in swept)
    return ",".join(sorted(apart)).replace("/", "_") or "point"


def main() -> None:
    # Without it Hydra prints an error of several lines and exits with 1; with it the exception arrives here.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        run()
    except (HydraException, OmegaConfBaseException) as error:
        fail(explain(error))


if __name__ == "__main__":
    main()
