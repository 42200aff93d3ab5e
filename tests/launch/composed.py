"""Runs as the recipe composes them, with the site of these tests."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from nemo_cdt.config import Config, typed
from nemo_cdt.launch.site import site_file, with_site
from nemo_cdt.validation import validate

CONF = Path(__file__).parents[2] / "conf"
SITE = Path(__file__).with_name("site.yaml")
EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))


def run(*overrides: str, site: Path = SITE) -> Config:
    """Composed, completed with the site's values and valid."""
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = with_site(typed(compose("config", [*overrides, f"launcher.site={site}"])))
    validate(config, site=str(site_file(config)))
    return config
