"""Kills a run of the recipe after its first checkpoint, resumes it, and sets the losses beside an uninterrupted run's.

On a GPU the widths are those of Llama-3.1-8B, bf16, 1 layer; elsewhere the tiny model, fp32.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import runs
from benchmarks.measured import ROOT, Row, on_gpu

STEPS, INTERVAL = 6, 3
LENGTH = 8192 if on_gpu() else 1024


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    with runs.folder() as folder:
        whole, cut = folder / "whole", folder / "cut"
        subprocess.run(recipe(whole, arguments.set), check=True)
        at = killed(cut, arguments.set)
        subprocess.run([*recipe(cut, arguments.set), "resume=true"], check=True)
        expected, resumed = losses(whole), losses(cut)
    yield {
        "killed_after_step": at,
        "uninterrupted": expected,
        "resumed": resumed,
        "largest_relative_difference": max(abs(resumed[step] / loss - 1) for step, loss in expected.items()),
    }


def overrides(output: Path) -> list[str]:
    vocabulary = "model.vocab_size=16384" if on_gpu() else ""
    settings = (
        f"output={output} data.seq_length={LENGTH} trainer.global_batch_size=2 "
        f"trainer.max_steps={STEPS} trainer.checkpoint_interval={INTERVAL}"
    )
    return runs.words(runs.model(1), vocabulary, settings)


def recipe(output: Path, more: list[str]) -> list[str]:
    return [sys.executable, str(ROOT / "recipes/cdt_llama31.py"), *overrides(output), *more]


def killed(output: Path, more: list[str]) -> int:
    """Trains until the first checkpoint is linked, kills it there with SIGKILL; the steps in its metrics by then."""
    process = subprocess.Popen(recipe(output, more))
    while not (output / "checkpoints/last").exists():
        if process.poll() is not None:
            raise SystemExit(f"the run ended by itself with {process.returncode}")
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return max(losses(output))


def losses(output: Path) -> dict[int, float]:
    rows = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}
