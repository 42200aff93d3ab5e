"""What is of a site alone, from a file of the user's own: never from this repository."""

import os
from collections.abc import Collection
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_cdt.config import Config
from nemo_cdt.config.launcher import Launcher, LauncherName, keys_of
from nemo_cdt.utils.reading import FileError, blamed_on, read_yaml
from nemo_cdt.utils.user_errors import first_line

OURS = {"name", "site", "dryrun", "follow", "max_restarts"}
"""Keys that are of a run, not of a site."""


def site_file(config: Config) -> Path:
    """``launcher.site``, else $NEMO_CDT_SITE, else ~/.config/nemo_cdt/site.yaml."""
    named = config.launcher.site or os.environ.get("NEMO_CDT_SITE")
    return Path(named) if named else Path.home() / ".config/nemo_cdt/site.yaml"


def with_site(config: Config, stated: Collection[str] = ()) -> Config:
    """``config`` with the site's values where ``launcher`` has none. The file has a section for each launcher::

        slurm: {account: ..., partition: ..., image: ..., mounts: [...], env: {...}}
        kubernetes: {namespace: ..., image: ..., workdir: ..., volumes: {...}}

    A value may be ``${oc.env:NAME}``. Of ``env`` and other mappings the command line's entries win, one by one; keys
    that it has ``stated``, as image=null, win too.

    Raises:
        ValueError: for a file that is named and missing, or a key that no site has.
    """
    launcher = config.launcher
    if launcher.name is LauncherName.local:
        return config
    file = site_file(config)
    if not file.exists():
        if launcher.site or os.environ.get("NEMO_CDT_SITE"):
            raise ValueError(f"{file}, the file of your site, does not exist: see launchers/README.md")
        return config
    with blamed_on(file):
        return replace(config, launcher=_joined(launcher, _section(file, launcher.name), stated, file))


def _joined(launcher: Launcher, given: dict[str, Any], stated: Collection[str], file: Path) -> Launcher:
    """``launcher`` with what ``file`` has given where it has nothing itself."""
    unset = {key.name: getattr(Launcher(), key.name) for key in fields(Launcher)}
    changes: dict[str, Any] = {}
    for key, value in given.items():
        key = str(key)
        if key not in keys_of(launcher.name) - OURS:
            near = get_close_matches(key, keys_of(launcher.name) - OURS, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise FileError(f"{file}: {launcher.name}.{key} is no key of launcher={launcher.name}{hint}")
        here = getattr(launcher, key)
        if isinstance(here, dict):
            if not isinstance(value, dict):
                raise FileError(f"{file}: {launcher.name}.{key} must be a mapping, not {str(value)[:60]}")
            changes[key] = value | here
        elif here == unset[key] and key not in stated:
            changes[key] = value
    return _typed(replace(launcher, **changes), file)


def _section(file: Path, name: LauncherName) -> dict[str, Any]:
    loaded = {} if (found := read_yaml(file)) is None else found
    if not isinstance(loaded, dict):
        raise FileError(f"{file} must have a section {name}: with keys of launcher={name}")
    try:  # ${oc.env:NAME} in it is expanded: the file is the user's own
        expanded = OmegaConf.to_container(OmegaConf.create(loaded), resolve=True)
    except OmegaConfBaseException as error:
        raise FileError(f"{file}: {first_line(error)[:200]}") from error
    sections = [launcher.value for launcher in LauncherName if launcher is not LauncherName.local]
    assert isinstance(expanded, dict)
    if unknown := [str(key) for key in expanded if key not in sections]:
        raise FileError(f"{file}: {unknown[0][:60]} is no section: there are {', '.join(sections)}")
    section = expanded.get(name.value, {})
    if not isinstance(section, dict):
        raise FileError(f"{file} must have a section {name}: with keys of launcher={name}")
    return section


def _typed(launcher: Launcher, file: Path) -> Launcher:
    """With every value of its key's type, as Hydra checks those of ``conf/``."""
    plain = OmegaConf.structured(Launcher())
    for key in fields(Launcher):
        try:
            plain[key.name] = getattr(launcher, key.name)
        except OmegaConfBaseException as error:
            raise FileError(f"{file}: {key.name}: {first_line(error)[:200]}") from error
    typed = OmegaConf.to_object(plain)
    assert isinstance(typed, Launcher)
    return typed
