"""Tests of the front end for Megatron-Bridge, in an environment that has it: `make test FRAMEWORK=bridge`."""

from nemo_cdt.config import Framework
from nemo_cdt.frameworks import is_installed

collect_ignore_glob = [] if is_installed(Framework.bridge) else ["test_*.py"]
