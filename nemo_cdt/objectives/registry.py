"""Which objectives there are: the rooms of this package, and entry points of the group ``nemo_cdt.objectives``."""

import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_cdt.objectives.base import Objective, Settings
from nemo_cdt.utils.user_errors import first_line

GROUP = "nemo_cdt.objectives"


def names() -> list[str]:
    """Of all objectives, in order."""
    return sorted(_classes() | _foreign())


def objective_class(name: str) -> type[Objective]:
    """Raises ValueError for a name that is none, and for an entry point that cannot be loaded."""
    if name in (ours := _classes()):
        return ours[name]
    if name not in (foreign := _foreign()):
        raise ValueError(f"objective={name} does not exist: choose objective={'|'.join(names())}")
    return _loaded(foreign[name])


def objective_of(config: Any) -> Objective:
    """That of a run's configuration."""
    return objective_class(config.objective.name)(config.objective)


def objectives_of(config: Any) -> list[Objective]:
    """That of a run, and that of the run beside it, if it has one."""
    beside = baseline_of(config)
    return [objective_of(config), *([objective_class(beside.name)(beside)] if beside else [])]


def baseline_of(config: Any) -> Settings | None:
    """The settings of ``compare_to``: those that it names; what it has in common with the run's own; its defaults.

    Raises:
        ValueError: for an objective that is none, and for a setting that it does not have or that is of another type.
    """
    if config.compare_to is None:
        return None
    given = {"name": config.compare_to} if isinstance(config.compare_to, str) else config.compare_to
    if not isinstance(given, Mapping):
        raise ValueError(f"compare_to={given}: set a name, {'|'.join(names())}, or '{{name:NAME,KEY:VALUE}}'")
    if given.get("name") not in names():
        raise ValueError(f"compare_to={given.get('name')} does not exist: choose compare_to={'|'.join(names())}")
    kind = objective_class(given["name"]).settings_class
    known = {field.name for field in fields(kind)}
    given = {str(renamed(key) or key if key not in known else key): value for key, value in given.items()}
    if unknown := given.keys() - known:
        raise ValueError(f"compare_to={given['name']} has no {min(unknown)}: it has {', '.join(sorted(known))}")
    shared = {field.name: getattr(config.objective, field.name) for field in fields(config.objective)}
    try:
        typed = OmegaConf.merge(OmegaConf.structured(kind), {key: shared[key] for key in shared if key in known}, given)
        return cast(Settings, OmegaConf.to_object(typed))
    except OmegaConfBaseException as error:
        raise ValueError(f"compare_to.{error.full_key}: {first_line(error)}") from error


def renamed(key: str) -> str | None:
    """What this key is called now; None for one that keeps its name, or is an objective's own again."""
    found = {kind.settings_class.RENAMED.get(key) for kind in loadable().values()} - {None}
    return None if holders(key) or not found else found.pop()


def holders(key: str) -> list[str]:
    """The objectives that have this setting."""
    return [name for name, kind in loadable().items() if key in {field.name for field in fields(kind.settings_class)}]


def loadable() -> dict[str, type[Objective]]:
    """All by name, without entry points' that cannot be loaded: those are refused where a run asks for them."""
    found = dict(_classes())
    for name, point in _foreign().items():
        with suppress(ValueError):
            found[name] = _loaded(point)
    return found


@cache
def _classes() -> dict[str, type[Objective]]:
    """Of the rooms here, each of which lists its own in ``OBJECTIVES``, by name."""
    found: dict[str, type[Objective]] = {}
    for room in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if room.ispkg:
            found |= import_module(f"{__package__}.{room.name}").OBJECTIVES
    return found


@cache
def _foreign() -> dict[str, EntryPoint]:
    """Those of entry points. A name that is one of ours stays ours."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in _classes()}


@cache
def _loaded(point: EntryPoint) -> type[Objective]:
    try:
        kind = point.load()
    except Exception as error:  # whatever the import of somebody else's module raises
        raise ValueError(f"objective={point.name} of {point.value} cannot be loaded: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Objective)):
        raise ValueError(f"objective={point.name} of {point.value} is no nemo_cdt.objectives.Objective")
    _check_class(point, kind)
    return kind


def _check_class(point: EntryPoint, kind: type[Objective]) -> None:
    """Refuses what its author forgot in one line, rather than in the middle of a run."""
    where, settings = f"objective={point.name} of {point.value}", kind.settings_class
    for missing in ("label", "about"):
        if not hasattr(kind, missing):
            raise ValueError(f"{where} has no {missing}: set it in {kind.__qualname__}")
    if "__dataclass_fields__" not in vars(settings):
        raise ValueError(f"{where}: set @dataclass(kw_only=True) above {settings.__qualname__}")
    name = settings.__dataclass_fields__["name"].default
    if name != point.name:
        raise ValueError(f'{where}: set `name: str = "{point.name}"` in {settings.__qualname__}, which has "{name}"')


def foreign_settings() -> Iterator[tuple[str, type[Settings]]]:
    """Of each objective that an entry point names, for Hydra: it has no file in conf/."""
    yield from ((name, kind.settings_class) for name, kind in loadable().items() if name in _foreign())
