"""Imported once by the fork server: every test process is forked from here, with NeMo in memory."""

import gc
import os
import tempfile
import warnings

os.environ["CUDA_VISIBLE_DEVICES"] = ""
home = tempfile.TemporaryDirectory(prefix="nemo_run-")
os.environ["NEMORUN_HOME"] = home.name  # which it reads when it is imported
warnings.filterwarnings("ignore")

from nemo_cdt.utils.cpu import cuda_on_cpu  # noqa: E402

with cuda_on_cpu():
    from nemo_cdt.nemo import assemble  # noqa: F401

gc.freeze()  # what is imported is not looked through again, in any of them
