"""What ``nemo-cdt plan`` was asked: overrides as of the recipe, and a cluster."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_cdt.config.compose import compose
from nemo_cdt.cost.cluster import Planned
from nemo_cdt.validation import validate_values

EXPERIMENT, GPU = "experiment=rows_llama31_8b_32k", "h100"
"""Where none is named."""


@dataclass(kw_only=True, slots=True)
class Request:
    """overrides: for the recipe, without what is the plan's own.  held: the keys among them, which keep their values.
    output: where to write JSON, if asked.
    """

    config: Planned
    overrides: list[str]
    held: set[str]
    output: Path | None


def read(arguments: Sequence[str]) -> Request:
    """Composes ``conf/`` as the recipe does.

    Raises:
        ValueError: for what cannot be composed, in one line.
    """
    values = dict(argument.partition("=")[::2] for argument in arguments)
    for key in ("trainer.devices", "trainer.num_nodes"):
        if key in values:
            raise ValueError(f"{key}={values[key]}: a plan says that; set cluster.gpus and cluster.gpus_per_node")
    output = values.get("output")
    gpu = values.get("cluster.gpu", values.get("cluster", GPU))
    kept = [argument for argument in arguments if not re.match(r"(cluster|cluster\.gpu|output)=", argument)]
    if "experiment" not in values:
        of_init = any(argument.startswith("init.") for argument in arguments) and "model" not in values
        kept = [EXPERIMENT, *(["model=init"] if of_init else []), *kept]
    config = compose_planned([f"+cluster={gpu}", *kept])
    most = config.model.max_positions
    if config.data.seq_length > most and not {"experiment", "data.seq_length"} & values.keys():
        print(f"note: no data.seq_length is named, so it is {most}, the positions of the model", file=sys.stderr)
        kept.append(f"data.seq_length={most}")
        config = compose_planned([f"+cluster={gpu}", *kept])
    _check(config, output)
    return Request(
        config=config,
        overrides=[override for override in kept if not override.startswith("cluster.")],
        held=set(values),
        output=None if output is None else Path(output),
    )


def _check(config: Planned, output: str | None) -> None:
    validate_values(config)
    gpus, per_node = config.cluster.gpus, config.cluster.gpus_per_node
    if gpus > per_node and gpus % per_node:
        raise ValueError(f"cluster.gpus={gpus} must be a multiple of cluster.gpus_per_node={per_node}, or below it")
    if output is not None and (Path(output).is_dir() or not Path(output).absolute().parent.is_dir()):
        raise ValueError(f"output={output} cannot be written: set output=FILE, in a folder that exists")


def compose_planned(overrides: list[str]) -> Planned:
    """The recipe's configuration for these overrides, and the cluster that ``+cluster=`` names."""
    return compose(overrides, Planned)
