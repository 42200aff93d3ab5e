"""``benchmarks/effect.py --jobs N``: its seeds in processes of their own, N at a time, spread over the GPUs.

Several may share a GPU: while one starts, saves or is judged, the others train.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.effect_report import FILE

SCRIPT = Path(__file__).with_name("effect.py")
PORT = 29600


def run(arguments: argparse.Namespace, words: list[str]) -> None:
    """Until every seed's process has ended. ``words``: the command line, which each process gets with its own seed.

    Raises:
        ValueError: in the end, where one failed; with its log.
    """
    begun = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    waiting, running, failed = list(arguments.seeds), {}, []
    seen = set(arguments.out.glob(f"seed_*/*/{FILE}"))
    # The time of a step is measured before any seed begins, on whatever GPU: steps this short wait for the host, and
    # beside three seeds that were starting CDT's took 2.2 of ce's in place of 1.4.
    if arguments.only:
        running["times"] = _started(arguments, words, "times", 0, begun)
    try:
        while waiting or running:
            for name in [name for name, (process, _) in running.items() if process.poll() is not None]:
                process, _ = running.pop(name)
                if process.returncode:
                    failed.append(f"{name} ended with exit code {process.returncode}: see {_log(arguments, name)}")
            while waiting and len(running) < arguments.jobs and (gpu := _free_gpu(arguments, running)) is not None:
                seed = waiting.pop(0)
                running[f"seed_{seed}"] = _started(arguments, words, f"seed_{seed}", gpu, begun)
            for file in sorted(set(arguments.out.glob(f"seed_*/*/{FILE}")) - seen):
                print(f"{time.monotonic() - begun:6.0f} s  {file.parent.relative_to(arguments.out)}", flush=True)
                seen.add(file)
            time.sleep(0.5)
    finally:
        for process, _ in running.values():
            process.terminate()
    if failed:
        raise ValueError("; ".join(failed))


def _free_gpu(arguments: argparse.Namespace, running: dict) -> int | None:
    """The one with the fewest processes; None while times are measured, or where each has its share."""
    if "times" in running:
        return None
    count = max(1, torch.cuda.device_count())
    used = [gpu for _, gpu in running.values()]
    free = [gpu for gpu in range(count) if used.count(gpu) < -(-arguments.jobs // count)]
    return min(free, key=used.count, default=None)


def _started(
    arguments: argparse.Namespace, words: list[str], name: str, gpu: int, begun: float
) -> tuple[subprocess.Popen, int]:
    own = ["--only", "times"] if name == "times" else ["--seeds", name.removeprefix("seed_")]
    left = arguments.minutes - (time.monotonic() - begun) / 60
    cache = arguments.out / ".cache" / name  # of compiled kernels: two processes at once would break one
    env = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // arguments.jobs)),
        **os.environ,
        "MASTER_PORT": str(PORT + (0 if name == "times" else 1 + arguments.seeds.index(int(own[1])))),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }
    if torch.cuda.device_count() > 1:
        env["CUDA_VISIBLE_DEVICES"] = str(gpu)
    command = [sys.executable, str(SCRIPT), *words, *own, "--minutes", str(left), "--jobs", "0"]
    with _log(arguments, name).open("ab") as log:
        return subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL), gpu


def _log(arguments: argparse.Namespace, name: str) -> Path:
    return arguments.out / f"{name}.log"
