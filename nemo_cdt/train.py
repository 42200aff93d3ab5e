"""``nemo-cdt train``: compose ``conf/``, validate, launch. ``recipes/cdt_llama31.py`` is the same as a script."""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_cdt.config import Config, typed
from nemo_cdt.config.compose import TINY, conf_dir, mistakes, register, shown, words_of
from nemo_cdt.config.errors import explain
from nemo_cdt.config.init import with_model_of_init
from nemo_cdt.fetch import fetch
from nemo_cdt.launch import launch
from nemo_cdt.launch.jobs import require_idle
from nemo_cdt.launch.site import site_file, with_site
from nemo_cdt.utils.atomic_write import real
from nemo_cdt.utils.streams import read_or_silent, sound_streams
from nemo_cdt.utils.user_errors import fail, reported
from nemo_cdt.validation import validate

SAME_IN_ALL = {"name", "output", "resume"}
"""Keys of a sweep that are in no point's name."""


def main(arguments: Sequence[str], program: str) -> None:
    """Trains what the command line asks for.

    Args:
        arguments: ``GROUP=OPTION``, ``KEY=VALUE`` and Hydra's flags.
        program: what the usage calls it.

    Raises:
        SystemExit: with 2 and one line for a mistake, with another code where training failed.
    """
    sound_streams()
    # Without it Hydra prints an error of several lines and exits with 1; with it the exception arrives here.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register()
    # What @hydra.main does, which reads sys.argv and would take the verb for an override.
    version.setbase("1.3")
    parser = get_args_parser()
    parser.prog = program
    args = parser.parse_args(arguments)
    whole = args.config_path is not None or args.config_name is not None
    with reported(files=False):
        args.overrides = words_of(args.overrides, whole=whole)
        if not (args.cfg or args.help or args.hydra_help or args.info):
            args.overrides = with_model_of_demo(args.overrides)
    if args.config_path is not None and "://" not in args.config_path:
        args.config_path = os.path.abspath(args.config_path)  # Hydra's would begin in the folder of this file
    try:
        with (
            reported(files=False),
            read_or_silent() if args.help or args.hydra_help or args.cfg or args.info else nullcontext(),
            shown(args.overrides) if args.cfg and not whole else nullcontext(args.overrides) as args.overrides,
        ):
            _run_hydra(args, parser, lambda composed: _train(composed, args), str(conf_dir()), "config")
    except (HydraException, OmegaConfBaseException) as error:
        fail(*([explain(error)] if whole else mistakes(error, args.overrides)))


def with_model_of_demo(words: Sequence[str]) -> list[str]:
    """Fetches the model of ``experiment=demo`` where it is not there yet; where it cannot be had, those of ``tiny``."""
    demo, named = "experiment=demo", any(word.startswith(("init.", "model=")) for word in words)
    if demo not in words or named:
        return [*words]
    folder = Path(OmegaConf.load(conf_dir() / "experiment/demo.yaml").init.hf)
    if folder.exists():
        return [*words]
    try:
        fetch("smollm2", folder)
    except ValueError as error:
        print(f"warning: {error}\nso the demo is experiment={TINY}: a tiny model from scratch", file=sys.stderr)
        return [f"experiment={TINY}" if word == demo else word for word in words]
    return [*words]


def warn_of_data(words: Sequence[str]) -> None:
    """Says that questions are generated, where a run names its model and no data."""
    named = {word.lstrip("+~").partition("=")[0].partition(".")[0] for word in words}
    if named & {"init", "model"} and not named & {"data", "experiment"}:
        print(
            "warning: no data is named, so data=multihop is taken, generated questions: set data=jsonl data.path=FILE "
            "for rows of your own",
            file=sys.stderr,
        )


def _train(composed: DictConfig, args: Namespace) -> None:
    with reported():
        config = with_site(_config(composed, args.overrides), _stated())
        _require_own_folder(config, args)
        if not config.launcher.dryrun:
            require_idle(config.output)
        validate(config, site=str(site_file(config)))
        warn_of_data(args.overrides)
        launch(config)


def _require_own_folder(config: Config, args: Namespace) -> None:
    """Raise ValueError for a run's own configuration that names another folder than it lies in, as a copy's does.

    The run would go on there, in the folder of which it is a copy.
    """
    folder = Path(args.config_path or "")
    is_run = args.config_path and args.config_name in ("config", "config.yaml") and (folder / "checkpoints").is_dir()
    stated = any(word.startswith("output=") for word in args.overrides)
    if is_run and not stated and real(folder) != real(Path(config.output)):
        raise ValueError(
            f"{folder / 'config.yaml'} says output={config.output}, and lies in another folder, a copy of that run: "
            f"set output={folder} to go on with the copy, or output={config.output} with that run"
        )


def _config(composed: DictConfig, given: Sequence[str]) -> Config:
    """The run that was composed. Each point of a sweep has a folder of its own in OUTPUT, named by what is swept."""
    try:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            composed.output = str(Path(composed.output, _point(given, HydraConfig.get().overrides.task)))
            composed.launcher.follow = composed.launcher.follow and composed.launcher.name == "local"
        return typed(_with_model(composed))
    except OmegaConfBaseException as error:
        fail(explain(error))


def _with_model(composed: DictConfig) -> DictConfig:
    now = HydraConfig.get()
    output = composed.output

    def again(words: Sequence[str]) -> DictConfig:
        made = hydra.compose(now.job.config_name, list(words))
        made.output = output
        return made

    return with_model_of_init(composed, now.overrides.task, now.runtime.choices.get("model"), again)


def _stated() -> set[str]:
    """The keys of ``launcher`` that the command line has."""
    words = OverridesParser.create().parse_overrides([*HydraConfig.get().overrides.task])
    return {word.key_or_group.removeprefix("launcher.") for word in words if word.key_or_group.startswith("launcher.")}


def _point(given: Sequence[str], task: Sequence[str]) -> str:
    """A point of a sweep by what sets it apart from the others, in no order of the command line's."""
    parser = OverridesParser.create()
    swept = {o.key_or_group for o in parser.parse_overrides([*given]) if o.is_sweep_override()} - SAME_IN_ALL
    apart = (o.input_line or "" for o in parser.parse_overrides([*task]) if o.key_or_group in swept)
    return ",".join(sorted(apart)).replace("/", "_") or "point"
