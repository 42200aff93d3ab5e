"""FP8's noise masks beside those of bf16, from the same weights and tokens, and what each pass then takes.

Weights are random, widths those of Llama-3.1-8B; with --hf DIR those of a trained model, on multi-hop questions. The
second bf16 row has the attention kernels for packed rows, as one document each: so far goes rounding alone.
"""

import argparse
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import runs
from benchmarks.measured import Row, attempted, on_gpu, repeated

LENGTHS = [8192, 32768] if on_gpu() else [256]
WAYS = {"bf16": "", "bf16, other attention kernels": "data.pack=true"}
if on_gpu():
    WAYS |= {"FP8 detection": "trainer.fp8=detection", "FP8 in both passes": "trainer.fp8=both"}
WARM_UP = 2


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    for length in arguments.lengths or LENGTHS:
        with runs.folder() as folder:
            expected: list[Row] = []
            for name, overrides in WAYS.items():
                row = {"name": name, "seq_length": length}
                yield row | attempted(partial(_measured, folder, length, overrides, arguments, expected))


def _measured(folder: Path, length: int, overrides: str, arguments: argparse.Namespace, expected: list[Row]) -> Row:
    """Times, and beside ``expected`` the masks of the first step, before which all have the same weights."""
    found: list[Row] = []
    config = runs.configured(
        f"{_model(length, arguments.hf)} output={folder}/run",
        _data(folder, length, arguments.hf),
        f"trainer.max_steps={arguments.repetitions + WARM_UP}",
        overrides,
        *arguments.set,
    )
    steps = runs.fit(config, runs.observed_by(partial(_keep, found)))
    shutil.rmtree(folder / "run")
    masks = found[: config.trainer.global_batch_size]
    expected[:] = expected or masks
    row = {f"{name}_s": repeated([step[key] for step in steps[WARM_UP:]]) for name, key in _TIMES.items()}
    row |= {"noise_fraction": steps[0]["noise_fraction"], "peak_gib": steps[-1]["peak_memory_gib"]}
    pairs = list(zip(masks, expected, strict=True))
    row["mask_agreement"] = float(np.mean(np.concatenate([ours["noise"] == theirs["noise"] for ours, theirs in pairs])))
    differences = [abs(ours["score"] - theirs["score"])[theirs["score"] > 0] for ours, theirs in pairs]
    scores = [theirs["score"][theirs["score"] > 0] for _, theirs in pairs]
    row["score_median_difference"] = float(np.median(np.concatenate(differences) / np.concatenate(scores)))
    row["detection_loss"] = steps[0]["detection_loss"]
    return row


_TIMES = {"step": "seconds", "detection": "detection_time", "training": "training_time"}


def _model(length: int, hf: str | None) -> str:
    return f"init.hf={hf}" if hf else runs.model(4, longest=length)


def _data(folder: Path, length: int, hf: str | None) -> str:
    if hf:
        return f"data=multihop data.seq_length={length} trainer.global_batch_size=32 trainer.micro_batch_size=1"
    return runs.write_rows(folder / "rows.jsonl", seq_length=length, labels="few")


def _keep(found: list[Row], detection: Any) -> None:
    real = (detection.batch["documents"].t() >= 0)[:, 0].cpu().numpy()
    columns = {"noise": detection.noise_SB, "score": detection.score_SB.float()}
    found.append({name: column_SB[:, 0].cpu().numpy()[real] for name, column_SB in columns.items()})
