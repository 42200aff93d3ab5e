"""What saving costs: how long training waits, and what the host's memory holds, for each way to save.

A run of the recipe for each: three saves and the last one, which always waits. On a GPU the widths are those of
Llama-3.1-8B, bf16, with a vocabulary of 16,384; elsewhere the model is the tiny one, fp32.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks import runs
from benchmarks.measured import ROOT, Row, on_gpu, repeated

SAVES = 3
INTERVAL = 40 if on_gpu() else 4
LENGTH = 8192 if on_gpu() else 1024
WAYS = [("full", False), ("dp", False), ("dp", True)]
"""trainer.checkpoint_resharding and trainer.async_save; the first is how it was before there were these keys."""
GIB = 2**30


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    for resharding, async_save in WAYS:
        with runs.folder() as folder:
            how = f"trainer.checkpoint_resharding={resharding} trainer.async_save={str(async_save).lower()}"
            found = measured(folder, [*overrides(folder / "run", arguments.layers), *how.split(), *arguments.set])
        yield {"resharding": resharding, "async_save": async_save} | found


def overrides(output: Path, layers: int | None) -> list[str]:
    vocabulary = "model.vocab_size=16384" if on_gpu() else ""
    settings = (
        f"output={output} data.seq_length={LENGTH} trainer.max_steps={(SAVES + 1) * INTERVAL} "
        f"trainer.checkpoint_interval={INTERVAL} trainer.checkpoints_kept=1"
    )
    return runs.words(runs.model(layers), vocabulary, settings)


def measured(folder: Path, words: list[str]) -> Row:
    said, checkpoints = folder / "said", folder / "run/checkpoints"
    start, before, peak = time.monotonic(), 0, 0
    with said.open("w") as file:
        command = [sys.executable, str(ROOT / "recipes/cdt_llama31.py"), *words]
        process = subprocess.Popen(command, stdout=file, stderr=file)
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            now = host_bytes(process.pid)
            peak = max(peak, now)
            if not any(checkpoints.glob("step=*")):
                before = now
            time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(ended[1])
    if process.returncode:
        raise RuntimeError(f"the run ended with {process.returncode}:\n{said.read_text()[-4000:]}")
    logged = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    waits = [row["save_time"] for row in logged if "save_time" in row]
    steps = sorted(row["step_time"] for row in logged if "step_time" in row)
    written = [float(took) for took in re.findall(r"was saved in ([0-9.]+) s", said.read_text())]
    (last,) = (path for path in checkpoints.glob("step=*") if path.is_dir())
    return {
        "checkpoint_gib": sum(path.stat().st_size for path in last.rglob("*") if path.is_file()) / GIB,
        "waited_s": repeated(waits[:SAVES]),
        "written_s": repeated(written[:SAVES]),
        "last_waited_s": waits[-1],
        "step_s": steps[len(steps) // 2],
        "host_before_gib": before / GIB,
        "host_peak_gib": peak / GIB,
        "host_of_saving_gib": (peak - before) / GIB,
        "maxrss_gib": ended[2].ru_maxrss * 1024 / GIB,
        "run_s": time.monotonic() - start,
    }


def host_bytes(pid: int) -> int:
    """Of a process and all that it started: what several share, as forked writers do, counts once (/proc's Pss)."""
    total = 0
    try:
        tree = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0
    for each in tree:
        try:
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        found = re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)
        total += int(found[1]) * 1024 if found else 0
    return total
