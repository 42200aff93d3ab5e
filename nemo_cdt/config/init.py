"""The model is that of ``init``: what its weights' folder says, and on top of it what a run says of ``model``.

A run is composed twice. The first time tells where its weights are; the second has their model in place of the group
``model``, so that an experiment's and the command line's keys of ``model`` change that one.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from nemo_cdt.config import huggingface, nemo_context
from nemo_cdt.config.fitting import as_override, differing
from nemo_cdt.config.schema import Model

OPTION, UNSET = "of_init", "init"
"""The option of the group ``model`` that holds what was read; the one that stands where none was chosen."""

Compose = Callable[[Sequence[str]], DictConfig]
RANDOM = (
    "no model is named, so model=tiny is taken, with random weights: set init.hf=DIR for the weights of a Hugging Face "
    "folder, or model=NAME"
)


def with_model_of_init(
    composed: DictConfig, overrides: Sequence[str], choice: str | None, again: Compose
) -> DictConfig:
    """``composed``, or the same with the model of ``init``.

    Args:
        composed: a run, as Hydra made it.
        overrides: those it was made with.
        choice: the option of the group ``model`` that it was made with.
        again: composes other overrides in the same way.

    Raises:
        ValueError: where ``init`` is no model, and where an option of the group ``model`` that was chosen is another
            model than ``init``'s.
    """
    if choice is None:  # a file of the user's, or a run's own: it is whole as it is
        return composed
    found, where = of_init(composed)
    with settled(found, where, overrides, choice) as words:
        made = composed if words == list(overrides) else again(words)
    if found is not None and choice != UNSET:
        _require_same(choice, composed, made, where)
    return made


@contextmanager
def settled(found: Model | None, where: str, overrides: Sequence[str], choice: str | None) -> Iterator[list[str]]:
    """Overrides with which Hydra composes the model that is meant, for as long as the block lasts."""
    without = [word for word in overrides if not word.startswith("model=")]
    if found is not None:
        with option_of(found) as option:
            yield [*without, option]
    elif choice != UNSET:
        yield [*overrides]
    elif where:
        raise ValueError(
            f"{where} is no folder with a model: set the path of one (names of the Hub are not downloaded: hf download "
            "NAME --local-dir DIR), or model=NAME if only the machines of a job have it"
        )
    else:
        print(f"warning: {RANDOM}", file=sys.stderr)
        yield [*without, "model=tiny"]


@contextmanager
def option_of(model: Model) -> Iterator[str]:
    """An override that gives a run this model, for as long as the block lasts."""
    store = ConfigStore.instance()
    node = {key: value for key, value in asdict(model).items() if key != "tokenizer"}
    store.store(group="model", name=OPTION, node=node)
    try:
        yield f"model={OPTION}"
    finally:
        del store.repo["model"]  # nobody else's: the options that a user may choose are files


def of_init(composed: DictConfig) -> tuple[Model | None, str]:
    """The model of ``init``, and the key and folder that say so; None where there is none, or none on this machine."""
    hf, nemo = (OmegaConf.select(composed, f"init.{name}") for name in ("hf", "nemo"))
    if hf and nemo:
        raise ValueError(f"init.hf={hf} and init.nemo={nemo}: set one of them to null")
    if not (hf or nemo):
        return None, ""
    where, folder = (f"init.hf={hf}", Path(hf)) if hf else (f"init.nemo={nemo}", Path(nemo))
    if not folder.is_dir() or not any(folder.iterdir()):
        return None, where  # the job's machines may have it; validation says so where they must not
    try:
        return (huggingface if hf else nemo_context).read_model(folder), where
    except ValueError as error:
        raise ValueError(f"{where} is no {'Hugging Face model' if hf else 'NeMo checkpoint'}: {error}") from error


def _require_same(choice: str, chosen: DictConfig, made: DictConfig, where: str) -> None:
    """What differs between the two comes from the option alone: all else said the same on top of both."""
    wrong = differing(_model(chosen), _model(made))
    if wrong:
        theirs = " ".join(as_override(name, theirs) for name, (_, theirs) in wrong.items())
        ours = " ".join(as_override(name, ours) for name, (ours, _) in wrong.items())
        raise ValueError(
            f"model={choice} is another model than {where}, which has {theirs} where that has {ours}: "
            "set model=init, for what it trains is the model of init"
        )


def _model(composed: DictConfig) -> Model:
    values = OmegaConf.to_container(composed.model, resolve=True)
    made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Model), values))
    assert isinstance(made, Model)
    return made
