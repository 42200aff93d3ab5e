"""The run beside a run: the same in everything but its objective."""

from dataclasses import replace
from pathlib import Path

from nemo_cdt.config import Config, Export
from nemo_cdt.objectives import baseline_of


def with_baseline(config: Config) -> list[Config]:
    """``config``, and the run that ``compare_to`` asks for, if it does."""
    if (beside := baseline_of(config)) is None:
        return [config]
    return [
        config,
        replace(
            config,
            name=f"{config.name}/{beside.name}",
            output=str(Path(config.output, "baseline")),
            objective=beside,
            compare_to=None,
            report=False,
            export=Export(),
        ),
    ]
