"""The section ``objective`` of a run: the settings of whichever objective its ``name`` says."""

import re
import sys
from collections.abc import Sequence
from typing import Any

from nemo_cdt.objectives.base import Settings
from nemo_cdt.objectives.registry import holders, objective_class, renamed

DEFAULT = "cdt"


def default_objective() -> Settings:
    return objective_class(DEFAULT).settings_class()


def settings_class(section: Any) -> type[Settings]:
    """Of a composed section, which may lack its name."""
    name = section.get("name", DEFAULT) if isinstance(section, dict) else DEFAULT
    return objective_class(str(name)).settings_class


def of_earlier_version(section: dict[str, Any]) -> dict[str, Any]:
    """That of a run's config.yaml as it is now. Until 0.2 it had the keys of all objectives, whichever it trained."""
    own = settings_class(section).__dataclass_fields__
    now = {renamed(key) or key: value for key, value in section.items()}
    return {key: value for key, value in now.items() if key in own or not holders(key)}


def with_new_names(section: Any) -> Any:
    """A composed section, in which a file of the user's may have keys by the names of before. Says so of each."""
    if not isinstance(section, dict):
        return section
    old = {key: new for key in section if (new := renamed(str(key)))}
    for key, new in old.items():
        _tell(key, new)
    kept = {key: value for key, value in section.items() if key not in old}
    return kept | {new: section[key] for key, new in old.items()}


def overrides_with_new_names(overrides: Sequence[str]) -> list[str]:
    """Hydra refuses a key that is not in conf/. Says so of each that has the name of before."""
    return [re.sub(r"^([+~]{0,2}objective\.)(\w+)(?=[=@]|$)", _new_name, override) for override in overrides]


def _new_name(override: re.Match[str]) -> str:
    new = renamed(override[2])
    if new is None:
        return override[0]
    _tell(override[2], new)
    return override[1] + new


def _tell(old: str, new: str) -> None:
    print(f"warning: objective.{old} is called objective.{new} now; 0.3 knows the new name alone", file=sys.stderr)
