"""NeMo-Run's home, which is none of the user's."""

import os
import tempfile
import warnings
from functools import cache

from nemo_cdt.utils.noise import PYNVML


@cache
def nemo_run_home() -> tempfile.TemporaryDirectory[str]:
    """NeMo-Run's records of jobs: it would keep them in the user's home folder. It reads where when first imported."""
    home = tempfile.TemporaryDirectory(prefix="nemo_run-")
    os.environ["NEMORUN_HOME"] = home.name
    warnings.filterwarnings("ignore", PYNVML)  # NeMo-Run imports torch
    return home
