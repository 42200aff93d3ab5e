"""What no type can say about a run, checked before anything heavy is imported.

Each check raises ValueError with one line: the values that cannot be together, and what to set instead.
"""

from functools import partial

from nemo_cdt.config import Config
from nemo_cdt.validation.framework import check_checkpoints, check_framework
from nemo_cdt.validation.jobs import check_launcher, missing_keys
from nemo_cdt.validation.layout import check_vocabulary, validate_layout
from nemo_cdt.validation.loggers import check_loggers, logger_blockers
from nemo_cdt.validation.outputs import check_output, check_places
from nemo_cdt.validation.places import check_unused, inputs
from nemo_cdt.validation.rules import require_all
from nemo_cdt.validation.same_data import record_data, require_same_data
from nemo_cdt.validation.sources import check_files, require_sources
from nemo_cdt.validation.values import validate_values

__all__ = [
    "check_checkpoints",
    "check_files",
    "check_output",
    "check_places",
    "check_unused",
    "check_vocabulary",
    "inputs",
    "logger_blockers",
    "missing_keys",
    "record_data",
    "require_same_data",
    "require_sources",
    "validate",
    "validate_layout",
    "validate_values",
]


def validate(config: Config, site: str = "launcher") -> None:
    """Raise ValueError for a run that cannot be. Call it once, before OUTPUT is made: OUTPUT must not hold a run.

    A dry run shows a job whose data and weights are not there too: launch/jobs.py says which. ``site`` is the file
    that has what is missing.
    """
    sources = () if config.launcher.dryrun else (partial(require_sources, config),)
    require_all(
        partial(check_launcher, config.launcher, config.name, config.output, site),
        partial(validate_values, config),
        partial(validate_layout, config),
        partial(check_loggers, config),
        partial(check_framework, config),
        *sources,
    )
