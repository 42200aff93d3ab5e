"""The one way from overrides to a typed configuration. All of them are in Hydra's grammar."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from nemo_cdt.config.errors import explain_all
from nemo_cdt.config.files import typed
from nemo_cdt.config.init import of_init, settled, with_model_of_init
from nemo_cdt.config.objective import overrides_with_new_names
from nemo_cdt.config.schema import Config
from nemo_cdt.objectives.registry import foreign_settings
from nemo_cdt.utils.user_errors import SeveralError

S = TypeVar("S")
PACKAGE = Path(__file__).parents[1]
TINY = "tiny"
"""The experiment of a command line that names none: it needs no network."""


def conf_dir() -> Path:
    """``conf/``: the package's copy where a wheel brought one, else that of the checkout."""
    packaged = PACKAGE / "conf"
    return packaged if packaged.is_dir() else PACKAGE.parent / "conf"


def groups() -> list[str]:
    """The names that stand before ``=OPTION``."""
    return sorted(folder.name for folder in conf_dir().iterdir() if folder.is_dir())


def options(group: str) -> list[str]:
    """The names that ``group=`` takes."""
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))


def register(schema: type[Any] = Config) -> None:
    """Makes ``schema`` the one that conf/config.yaml names first, and entry points' objectives options of theirs."""
    store = ConfigStore.instance()
    store.store(name="schema", node=schema)
    for name, kind in foreign_settings():
        store.store(group="objective", name=name, node=kind)


def compose(overrides: Sequence[str], schema: type[S] = Config) -> S:  # type: ignore[assignment]
    """A run as ``nemo-cdt train`` composes it from ``conf/``. It is not yet validated.

    Args:
        overrides: ``GROUP=OPTION`` and ``KEY=VALUE``, as on the command line.
        schema: :class:`Config`, or what inherits from it.

    Raises:
        ValueError: for what cannot be composed, in one line.
    """
    register(schema)
    try:
        words = words_of(overrides)
        with (
            hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"),
            _a_line_each(schema, words, _composed),
        ):
            composed, choice = _composed(words)
            return typed(with_model_of_init(composed, words, choice, lambda again: _composed(again)[0]), schema)
    finally:
        register()


def words_of(overrides: Sequence[str], *, whole: bool = False) -> list[str]:
    """What Hydra gets of a command line: keys by their names of now; ``tiny``, where it names no model and no data.

    ``whole``: the primary configuration is the user's own, which has no default. Raises ValueError for ``GROUP=null``,
    of which Hydra makes a traceback, and for a list that has an option twice, which it passes over.
    """
    own = r"[+~]{0,2}(experiment|model|data|init|init\.\w+|data\.(path|validation_path))(=|@|$)"
    overrides = at_home(overrides)
    for group in groups():
        if f"{group}=null" in overrides:
            raise ValueError(f"{group}=null is no option: choose {group}={'|'.join(options(group))}, or leave it out")
        for listed in (word for word in overrides if re.fullmatch(rf"{group}=\[.*\]", word)):
            names = [name.strip() for name in listed[len(group) + 2 : -1].split(",")]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{listed} has {twice[0]} more than once: leave one out")
    default = [] if whole or any(re.match(own, override) for override in overrides) else [f"experiment={TINY}"]
    return [*default, *overrides_with_new_names(overrides)]


def at_home(overrides: Sequence[str]) -> list[str]:
    """``~`` at the beginning of a value is the user's home: no shell sees it behind a key."""
    return [re.sub(r"""^([^=]+=['"]?)~(?=['"]?(/|$))""", rf"\1{Path.home()}", override) for override in overrides]


@contextmanager
def shown(words: Sequence[str]) -> Iterator[list[str]]:
    """Words with which Hydra alone composes the model of ``init``, for as long as the block lasts."""
    composed, choice = _again(words)
    with settled(*of_init(composed), words, choice) as now:
        yield now


def mistakes(error: HydraException | OmegaConfBaseException, words: Sequence[str]) -> list[str]:
    """A line for each of the ``words`` that Hydra cannot compose. ``error``: what it said of the first."""
    return explain_all(error, words, _again)


def _again(words: Sequence[str]) -> tuple[DictConfig, str | None]:
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return _composed(words)


def _composed(words: Sequence[str]) -> tuple[DictConfig, str | None]:
    """A run, and which option of the group ``model`` it has."""
    composed = hydra.compose("config", list(words), return_hydra_config=True)
    choice = composed.hydra.runtime.choices.get("model")
    with open_dict(composed):
        del composed["hydra"]
    return composed, choice


def compose_settings(schema: type[S], overrides: Sequence[str], option: str | None = None) -> S:
    """A command's own few keys, from their defaults and ``KEY=VALUE``.

    Args:
        schema: a dataclass with a default for each key.
        overrides: as on the command line.
        option: ``GROUP/NAME``, a file of ``conf/`` whose values go before the overrides.

    Raises:
        ValueError: for what cannot be composed, in one line.
    """
    ConfigStore.instance().store(name="settings", node=schema)
    # Without an option conf/ stays out of sight: a key such as `model` would be taken for the group of that name.
    group, _, name = (option or "").partition("/")
    begin = hydra.initialize_config_dir(str(conf_dir()), version_base="1.3") if option else _without_conf()
    values = [f"+{group}@_global_={name}"] if option else []

    def composed(words: Sequence[str]) -> DictConfig:
        return hydra.compose("settings", [*values, *words])

    words = at_home(overrides)
    with begin, _a_line_each(schema, words, composed):
        return typed(composed(words), schema)


def _without_conf() -> Any:
    return hydra.initialize(config_path=None, version_base="1.3")


@contextmanager
def _a_line_each(schema: type[Any], words: Sequence[str], again: Callable[[list[str]], object]) -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise SeveralError(explain_all(error, words, again, schema())) from error
