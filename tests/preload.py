"""Imported once by the fork server: test processes are forked from here, with NeMo or Megatron-Bridge in memory."""

import gc
import os
import tempfile
import warnings

os.environ["CUDA_VISIBLE_DEVICES"] = ""
home = tempfile.TemporaryDirectory(prefix="nemo_run-")
os.environ["NEMORUN_HOME"] = home.name  # which it reads when it is imported
warnings.filterwarnings("ignore")

from nemo_cdt.config import Framework  # noqa: E402
from nemo_cdt.frameworks import is_installed  # noqa: E402
from nemo_cdt.utils.cpu import cuda_on_cpu  # noqa: E402

with cuda_on_cpu():
    if is_installed(Framework.nemo):
        from nemo_cdt.nemo import assemble  # noqa: F401
    else:
        from nemo_cdt.bridge import fit  # noqa: F401

gc.freeze()  # what is imported is not looked through again, in any of them
