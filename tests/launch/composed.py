"""Runs as the recipe composes them, with the site of these tests."""

from pathlib import Path

from nemo_cdt.config import Config
from nemo_cdt.config.compose import compose, options
from nemo_cdt.launch.site import site_file, with_site
from nemo_cdt.validation import validate

SITE = Path(__file__).with_name("site.yaml")
EXPERIMENTS = [name for name in options("experiment") if name != "demo"]  # whose study is of this machine
MODEL = ("data.path=data/rows.jsonl", "init.hf=models/llama", "model.tokenizer=models/llama")
"""On a cluster elsewhere: nothing of it is here."""
AWAY = ("launcher=slurm", "launcher.host=login", "launcher.user=me", "launcher.workdir=/lustre/me")


def run(*overrides: str, site: Path = SITE) -> Config:
    """Composed, completed with the site's values and valid."""
    config = with_site(compose([*overrides, f"launcher.site={site}"]))
    validate(config, site=str(site_file(config)))
    return config
