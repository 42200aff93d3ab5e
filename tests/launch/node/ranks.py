"""What the tests of launch/node start in place of a training: a rank reads the run's name to know how to end."""

import os
import signal
import sys
import time
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from nemo_cdt.config import load
from nemo_cdt.launch.node.worker import done


@record
def main() -> None:
    config, rank, attempt = load(Path(sys.argv[1])), os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
    print(f"rank {rank}, attempt {attempt}", flush=True)
    if rank == "0" or (attempt == "1" and config.launcher.max_restarts == 1 and config.name != "always"):
        return done(Path(sys.argv[1]), int(rank)).touch()
    match config.name:
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "nan" | "always":
            raise RuntimeError("found NaN in local grad norm")
        case "mistake":
            raise SystemExit(2)
        case "preempted":
            raise SystemExit(128 + signal.SIGTERM)
        case "hangs":
            from nvidia_resiliency_ext.fault_tolerance import RankMonitorClient

            client = RankMonitorClient()
            client.init_workload_monitoring()
            client.send_heartbeat()
            time.sleep(600)


if __name__ == "__main__":
    main()
