"""Train a Llama with Context Denoising Training: the command ``nemo-cdt train`` as a script.

python recipes/cdt_llama31.py            # the demo
python recipes/cdt_llama31.py --help     # groups and keys
"""

import sys
from pathlib import Path

from nemo_cdt.train import main

if __name__ == "__main__":
    main(sys.argv[1:], Path(sys.argv[0]).name)
