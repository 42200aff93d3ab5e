"""Which framework drives Megatron: NeMo 2's, or Megatron-Bridge, which took its place."""

from importlib.util import find_spec
from pathlib import Path

from nemo_cdt.config import Config, Framework

PACKAGES = {Framework.nemo: "nemo", Framework.bridge: "megatron.bridge"}
CHECKPOINTS = {Framework.nemo: "step=*", Framework.bridge: "iter_*"}
"""What each calls the folders of its checkpoints."""


def framework_of(config: Config) -> Framework:
    """The one that is asked for; ``auto``: the one that is installed, and NeMo where both or neither are."""
    if config.framework is not Framework.auto:
        return config.framework
    there = [framework for framework in PACKAGES if is_installed(framework)]
    return there[0] if there else Framework.nemo


def is_installed(framework: Framework) -> bool:
    """Looks for its package and imports none, not even the one that it would be in."""
    name, _, within = PACKAGES[framework].partition(".")
    spec = find_spec(name)
    if spec is None or not within:
        return spec is not None
    return any(Path(place, within).is_dir() for place in spec.submodule_search_locations or ())


def framework_of_checkpoints(folder: Path) -> Framework | None:
    """The one whose checkpoints a run's folder holds."""
    return next((one for one, name in CHECKPOINTS.items() if any(folder.glob(name))), None)
