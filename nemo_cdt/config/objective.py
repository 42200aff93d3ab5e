"""The section ``objective`` of a run: the settings of whichever objective its ``name`` says."""

from typing import Any

from nemo_cdt.objectives.base import Settings
from nemo_cdt.objectives.registry import holders, objective_class

DEFAULT = "cdt"


def default_objective() -> Settings:
    return objective_class(DEFAULT).settings_class()


def settings_class(section: Any) -> type[Settings]:
    """Of a composed section, which may lack its name."""
    name = section.get("name", DEFAULT) if isinstance(section, dict) else DEFAULT
    return objective_class(str(name)).settings_class


def without_keys_of_others(section: dict[str, Any]) -> dict[str, Any]:
    """Until 0.2 a run's config.yaml had the keys of all objectives, whichever it trained."""
    own = settings_class(section).__dataclass_fields__
    return {key: value for key, value in section.items() if key in own or not holders(key)}
