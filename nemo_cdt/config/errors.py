"""Hydra's and OmegaConf's errors in one line that names the key, the value and what there is instead."""

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from nemo_cdt.config.schema import Config, walk
from nemo_cdt.objectives.registry import holders, objective_class

GROUPS_WITHOUT_KEYS = ["experiment"]
QUOTED = """a value with spaces or signs is quoted for the shell and for Hydra, as 'data.path="my rows.jsonl"'"""


def explain_all(
    error: HydraException | OmegaConfBaseException,
    words: Sequence[str],
    again: Callable[[list[str]], object],
    schema: Any = None,
) -> list[str]:
    """A line for each of ``words`` that is mistyped. Hydra stops at the first: ``again`` composes the others."""
    lines, left = [explain(error, schema)], [*words]
    while wrong := [word for word in left if _is_of(error, word)]:
        left = [word for word in left if word not in wrong]
        try:
            again(left)
        except (HydraException, OmegaConfBaseException) as another:
            error = another
            if any(_is_of(error, word) for word in left):
                lines.append(explain(error, schema))
        else:
            break
    return lines


def _is_of(error: BaseException, word: str) -> bool:
    """Whether an override is that of the key which the error names."""
    given, cause = word.lstrip("+~").partition("=")[0], error.__cause__
    key = str((cause if isinstance(cause, OmegaConfBaseException) else error).__dict__.get("full_key") or "")
    short, long = sorted((given, key), key=len)
    return bool(key) and re.match(rf"{re.escape(short)}([.\[]|$)", long) is not None


def explain(error: HydraException | OmegaConfBaseException, schema: Any = None) -> str:
    """One line for a user who mistyped an override of ``schema``, which is :class:`Config` unless given."""
    if isinstance(error, MissingConfigException) and (there := error.options or _options(error.missing_cfg_file)):
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        if group == "objective":
            try:
                objective_class(option)
            except ValueError as reason:  # an entry point's, which cannot be loaded
                return str(reason)
        return f"{group}={option} does not exist: choose {group}={'|'.join(there)}"
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        return explain(cause, schema)
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        key, node = str(error.full_key), error.parent_node
        # What stands there: the keys of an objective are those of the one that is chosen, not of the schema's.
        there = list(node) if key.startswith("objective.") and isinstance(node, DictConfig) else []
        return _unknown(key, schema or Config(), [f"objective.{name}" for name in there])
    text = [line.strip() for line in str(error).splitlines()]
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {text[0]}" if error.full_key else text[0]
    words = " ".join(line for line in text if not line.startswith("See https://"))
    return f"{words}: {QUOTED}" if isinstance(error, OverrideParseException) and "=" in error.override else words


def _options(missing: str | None) -> list[str]:
    """Of the group of a missing option: for one in a list, as ``logger=[wandb,foo]``, Hydra does not tell them."""
    from nemo_cdt.config.compose import groups, options

    group = (missing or "").rpartition("/")[0]
    return options(group) if group in groups() else []


def _unknown(key: str, schema: Any, objective: list[str]) -> str:
    parent, _, name = key.rpartition(".")
    if isinstance(dict(walk(schema)).get(parent), dict):
        return f"unknown key {key}: the keys of {parent} are yours, add one as +{key}=VALUE"
    if parent == "objective" and (of := holders(name)):
        return f"unknown key {key}: it is of objective={'|'.join(of)}, set one of them or leave it out"
    groups = GROUPS_WITHOUT_KEYS if isinstance(schema, Config) else []
    known = [*groups, *(known_key for known_key, _ in walk(schema))]
    if objective:
        known = [*(each for each in known if not each.startswith("objective.")), *objective]
    siblings = {sibling.rpartition(".")[2]: sibling for sibling in known if sibling.rpartition(".")[0] == parent}
    elsewhere = [known_key for known_key in known if known_key.endswith(f".{name}")]
    near = [siblings[match] for match in get_close_matches(name, siblings, n=1)] or elsewhere
    if near:
        return f"unknown key {key}: did you mean {' or '.join(near)}?"
    return f"unknown key {key}: {parent or 'it'} has {', '.join(siblings)}"
