"""The run beside a run: the same in everything but its objective."""

from dataclasses import replace
from pathlib import Path

from nemo_cdt.config import Config, Export


def with_baseline(config: Config) -> list[Config]:
    """``config``, and the run that ``compare_to`` asks for, if it does."""
    if config.compare_to is None:
        return [config]
    return [
        config,
        replace(
            config,
            name=f"{config.name}/{config.compare_to}",
            output=str(Path(config.output, "baseline")),
            objective=replace(config.objective, name=config.compare_to),
            compare_to=None,
            report=False,
            export=Export(),
        ),
    ]
