"""Imported once by the fork server: every test process is forked from here, with NeMo in memory."""

import os
import warnings

os.environ["CUDA_VISIBLE_DEVICES"] = ""
warnings.filterwarnings("ignore")

from nemo_cdt.cpu import cuda_on_cpu  # noqa: E402

with cuda_on_cpu():
    from nemo_cdt.nemo import assemble  # noqa: F401
