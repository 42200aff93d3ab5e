"""What the launcher's tests start in place of a training: each rank reads the run's name to know how to end."""

import os
import signal
import sys
import time
from pathlib import Path

from nemo_cdt.config import load
from nemo_cdt.utils.parent_watchdog import end_with_launcher
from nemo_cdt.utils.user_errors import reported


def main() -> None:
    end_with_launcher()
    config = load(sys.argv[1])
    rank = os.environ["RANK"]
    if config.name == "slow to save":
        signal.signal(signal.SIGTERM, lambda *_: Path(config.output, f"told{rank}").touch())
    Path(config.output, f"pid{rank}").write_text(str(os.getpid()))
    print(f"rank {rank} of {os.environ['WORLD_SIZE']}", flush=True)
    with reported():
        if config.name == "mistake":
            Path("/rows/that/are/not/there.jsonl").read_text()
    if config.name == "bug" and rank == "1":
        raise RuntimeError("a bug of rank 1")
    if config.name == "fragile" and rank == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        raise RuntimeError("not at the first attempt")
    if config.name in ("endless", "slow to save"):
        time.sleep(600)


if __name__ == "__main__":
    main()
