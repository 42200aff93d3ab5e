"""Values from Hydra or a file as the schema has them, and OUTPUT/config.yaml: written and read back."""

import re
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_cdt.config.objective import of_earlier_version, settings_class, with_new_names
from nemo_cdt.config.schema import Config, Packing
from nemo_cdt.utils.atomic_write import atomic_write
from nemo_cdt.utils.reading import blamed_on, read_yaml
from nemo_cdt.utils.user_errors import first_line

S = TypeVar("S")


def typed(config: DictConfig | ListConfig, schema: type[S] = Config) -> S:  # type: ignore[assignment]
    """What Hydra or a file composed, as ``schema``. An unknown key or a wrong type is an OmegaConf error."""
    # Merged as a plain dict: a DictConfig to which Hydra's `+key=value` added a key would pass.
    values = _literally(OmegaConf.to_container(config, resolve=True))
    expected = OmegaConf.structured(schema)
    if "objective" in expected:
        values["objective"] = with_new_names(values.get("objective"))
        expected.objective = OmegaConf.structured(settings_class(values.get("objective")))
    return cast(S, OmegaConf.to_object(OmegaConf.merge(expected, values)))


def load(path: str | Path) -> Config:
    """The run that :func:`save` wrote. Its values are what they are: ``${...}`` is text and not looked up.

    Raises:
        FileError: names the file and what is wrong in it.
    """
    with blamed_on(path):
        found = read_yaml(Path(path))
        if not isinstance(found, dict):
            raise ValueError("it holds no keys with values")
        if isinstance(found.get("objective"), dict):
            found["objective"] = of_earlier_version(found["objective"])
        if isinstance(data := found.get("data"), dict) and data.get("pack") is True:
            data.setdefault("packing", str(Packing.sequential))  # the one way there was until 0.2
        try:
            return typed(OmegaConf.create(_literally(found)))
        except OmegaConfBaseException as error:
            raise ValueError(first_line(error)) from error


def _literally(value: Any) -> Any:
    """As OmegaConf gives it back when it looks up what stands between ``${`` and ``}``."""
    match value:
        case str():
            return re.sub(r"(\\*)\$\{", r"\1\1\${", value)
        case dict():
            return {key: _literally(each) for key, each in value.items()}
        case list():
            return [_literally(each) for each in value]
    return value


def save(config: Config, path: str | Path) -> None:
    """Write ``config`` as YAML, whole or not at all; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, OmegaConf.to_yaml(OmegaConf.structured(config)))
