"""One rank of a run on a cluster, as nemo_cdt/launch/node starts it: preflight, then training from the last checkpoint.

Imports nothing heavy by itself: Megatron's checkpoint writer starts a process that imports the main module again.
"""

import os
import sys
from pathlib import Path

from nemo_cdt.config import load
from nemo_cdt.utils.user_errors import reported


def done(file: Path, local_rank: int) -> Path:
    """Of the run of ``file``, what this rank of the node leaves when it has reached the end."""
    return file.with_suffix(f".{local_rank}.done")


def main() -> None:
    file = Path(sys.argv[1])
    reached = done(file, int(os.environ["LOCAL_RANK"]))
    reached.unlink(missing_ok=True)  # an earlier attempt's
    refused = file.with_suffix(".refused")
    if refused.exists():  # torchrun starts a rank again after a user's mistake too
        raise SystemExit(2)
    from torch.distributed.elastic.multiprocessing.errors import record

    try:
        record(train)(file)
        reached.touch()
    except SystemExit as exit:
        if exit.code == 2:
            refused.touch()
        raise


def train(file: Path) -> None:
    from nemo_cdt import training

    with reported():
        from nemo_cdt.launch.node.preflight import preflight

        config = load(file)
        store = preflight(config, os.environ)
    config.resume = True  # from what an earlier attempt of this job saved, if it did
    # A file system that fails under a run is no mistake of the user's: the next attempt may find it well.
    with reported(files=False):
        training.train(config)
    del store


if __name__ == "__main__":
    main()
