"""One CDT step under each layout of two GPUs beside one GPU: noise masks, thresholds, losses.

bf16 sums in another order on another layout, and so does one GPU with the attention kernels for packed rows (here of
one document each): the rows of one GPU show how far rounding alone goes. Weights are random and the same everywhere,
widths those of Llama-3.1-8B, vocabulary 16,384. With one GPU, only its own rows. Each number of GPUs is a process group
of its own, started here:

    torchrun --nproc-per-node 2 -m benchmarks.layouts FOLDER 8192,32768 [LAYOUT]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import runs
from benchmarks.measured import ROOT, Row, attempted, on_gpu
from nemo_cdt.config import Config
from nemo_cdt.utils.atomic_write import atomic_write

LENGTHS = [8192, 32768] if on_gpu() else [4096]
PACKED = "data.pack=true"
ONE_GPU = {
    "one GPU": "",
    "one GPU, packed": PACKED,
    "one GPU, again": "",
    "one GPU, other attention kernels": f"{PACKED} data.document_length=null",
    "one GPU, full recompute": "trainer.recompute=full",
}
TWO_GPUS = {
    "TP2": "parallel.tensor=2",
    "TP2+SP": "parallel.tensor=2 parallel.sequence=true",
    "CP2 p2p": "parallel.context=2",
    "CP2 all_gather": "parallel.context=2 parallel.context_comm=all_gather",
    "CP2 a2a": "parallel.context=2 parallel.context_comm=a2a",
    "PP2": "parallel.pipeline=2",
    "PP2 interleaved": "parallel.pipeline=2 parallel.virtual_pipeline=2",
    "DP2": "",
    "DP2 overlapped": "parallel.overlap_grad_reduce=true parallel.overlap_param_gather=true",
    "CP2 packed": f"parallel.context=2 {PACKED}",
    "CP2 a2a packed": f"parallel.context=2 parallel.context_comm=a2a {PACKED}",
    "TP2+SP packed": f"parallel.tensor=2 parallel.sequence=true {PACKED}",
    "PP2 packed": f"parallel.pipeline=2 {PACKED}",
}
LONG = {
    "CP2 full recompute": "parallel.context=2 trainer.recompute=full",
    "TP2+SP full recompute": "parallel.tensor=2 parallel.sequence=true trainer.recompute=full",
}
"""On two GPUs above 65,536 tokens, where one GPU has no room to compare."""


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    lengths = arguments.lengths or LENGTHS
    worlds = (1, 2) if not on_gpu() or torch.cuda.device_count() > 1 else (1,)
    with runs.folder() as folder:
        for world in worlds:
            yield from _finished(folder, world, lengths, arguments)


def _finished(folder: Path, world: int, lengths: list[int], arguments: argparse.Namespace) -> Iterator[Row]:
    """What ``world`` processes find, as they find it."""
    due = [(name, length) for length in lengths for name in layouts(world, length, arguments.only)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world)]
    worker = ["-m", "benchmarks.layouts", str(folder), ",".join(map(str, lengths)), *filter(None, [arguments.only])]
    process = subprocess.Popen([*command, *worker], cwd=ROOT, start_new_session=True)
    try:
        while due and time.monotonic() < arguments.deadline:
            ended = process.poll() is not None
            for each in [each for each in due if all(_file(folder, *each, rank).exists() for rank in range(world))]:
                yield compared(folder, *each)
                due.remove(each)
            if ended:
                break
            time.sleep(0.2)
    finally:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0 if due else 30)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # torchrun and its ranks
    yield from ({"name": name, "seq_length": length, "error": "did not finish"} for name, length in due)


def layouts(world: int, seq_length: int, only: str | None) -> dict[str, str]:
    """Those of ``world`` devices, by name: their overrides. ``only`` one, and what it is compared to."""
    short, long = (ONE_GPU, {}) if world == 1 else (TWO_GPUS, LONG)
    found = short if seq_length <= 65536 else long
    return {name: overrides for name, overrides in found.items() if only in (None, name) or name == reference(only)}


def reference(name: str) -> str:
    return "one GPU, packed" if "packed" in name else "one GPU"


def work(folder: Path, lengths: list[int], only: str | None) -> None:
    """Every layout of as many ranks as there are, on one of them: writes what it finds into ``folder``."""
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    for length in lengths:
        for name, overrides in layouts(world, length, only).items():
            _fresh_store()
            file = _file(folder, name, length, rank)
            config = _configured(
                folder, f"{file.stem}-run".replace(" ", "_").replace(",", ""), length, overrides, world
            )
            row = {"world": world} | attempted(_step, config, file.with_suffix(".npz"))
            atomic_write(file, json.dumps(row))


def _configured(folder: Path, run: str, seq_length: int, overrides: str, world: int) -> Config:
    (folder / "init").mkdir(exist_ok=True)
    packed = f"data.document_length={seq_length // 4 - 8}" if PACKED in overrides else ""
    config = runs.configured(
        runs.model(4, longest=seq_length),
        "model.vocab_size=16384" if on_gpu() else "",
        f"init.nemo={folder}/init model.tokenizer=byte output={folder}/{run} data.seq_length={seq_length} {packed}",
        f"trainer.devices={world} trainer.max_steps=1 trainer.global_batch_size=2",
        overrides,
    )
    if not any((folder / "init").iterdir()):
        with runs.devices():
            _random_weights(config)
    return config


def _random_weights(config: Config) -> None:
    """Writes the checkpoint that every run starts from."""
    from nemo_cdt.checkpoint import megatron_writing
    from nemo_cdt.checkpoint.weights import megatron_shapes
    from nemo_cdt.nemo.context import write_context

    device, dtype = ("cuda", torch.bfloat16) if on_gpu() else ("cpu", torch.float32)
    torch.manual_seed(0)
    weights = {
        name: (torch.ones(shape) if len(shape) == 1 else torch.randn(shape, device=device).cpu() * 0.02).to(dtype)
        for name, shape in megatron_shapes(config.model).items()
    }
    folder, none = Path(config.init.nemo or ""), Path(config.output, "none")
    megatron_writing.write(folder, weights, config.model, tokenizer=none, write_context=write_context)


def _step(config: Config, arrays: Path) -> Row:
    """The metrics of one step; what detection found in each micro-batch on this rank goes to ``arrays``."""
    found: list[dict[str, np.ndarray]] = []

    def observer(detection: Any) -> None:
        positions = {
            key: detection.share(detection.batch[key].t())[:, 0].cpu().numpy() for key in ("positions", "documents")
        }
        scores = {"score": detection.score_SB[:, 0], "noise": detection.noise_SB[:, 0], "bar": detection.threshold_N}
        found.append(positions | {key: value.cpu().numpy() for key, value in scores.items()})

    metrics = runs.fit(config, runs.observed_by(observer))[0]
    np.savez(arrays, **{f"{i}/{key}": value for i, each in enumerate(found) for key, value in each.items()})
    return {"metrics": metrics, "data_parallel": config.data_parallel}


def compared(folder: Path, name: str, seq_length: int) -> Row:
    """One layout beside one GPU, where that found something."""
    row = {"name": name, "seq_length": seq_length} | _read(folder, name, seq_length)
    theirs = _read(folder, reference(name), seq_length)
    if "error" in row or "metrics" not in theirs:
        return row
    ours, expected = (_tokens(folder, r, each) for r, each in ((row, name), (theirs, reference(name))))
    scores = [abs(ours[k][0] - score) / score for k, (score, _, _) in expected.items() if score > 0]
    bars = [abs(ours[k][2] - bar) / bar for k, (_, _, bar) in expected.items()]
    names = ("detection_loss", "reduced_train_loss", "grad_norm", "noise_fraction")
    return row | {
        "tokens": len(expected),
        "same_tokens": ours.keys() == expected.keys(),
        "mask_agreement": float(np.mean([ours[k][1] == noise for k, (_, noise, _) in expected.items()])),
        "score_median_difference": float(np.median(scores)),
        "threshold_difference": float(max(bars)),
        **{f"{n}_difference": abs(row["metrics"][n] / theirs["metrics"][n] - 1) for n in names},
    }


Token = tuple[int, int, int]
"""Row of the batch, document in it, position in that: where a row has it depends on the layout's alignment."""


def _tokens(folder: Path, row: Row, name: str) -> dict[Token, tuple[float, bool, float]]:
    """Score, noise and threshold of every token, of all ranks together."""
    tokens: dict[Token, tuple[float, bool, float]] = {}
    for rank in range(row["world"]):
        saved = np.load(_file(folder, name, row["seq_length"], rank).with_suffix(".npz"))
        for index in {int(key.split("/")[0]) for key in saved}:
            part = {key: saved[f"{index}/{key}"] for key in ("positions", "documents", "score", "noise", "bar")}
            place = index * row["data_parallel"] + (rank if row["data_parallel"] > 1 else 0)
            columns = (part[key] for key in ("positions", "documents", "score", "noise"))
            for position, document, score, noise in zip(*columns, strict=True):
                if document >= 0:
                    found = (float(score), bool(noise), float(part["bar"][document]))
                    tokens[place, int(document), int(position)] = found
    starts: dict[tuple[int, int], int] = {}
    for place, document, position in tokens:
        starts[place, document] = min(position, starts.get((place, document), position))
    return {(p, d, position - starts[p, d]): found for (p, d, position), found in tokens.items()}


def _read(folder: Path, name: str, seq_length: int) -> Row:
    file = _file(folder, name, seq_length, rank=0)
    return {"seq_length": seq_length} | (json.loads(file.read_text()) if file.exists() else {})


def _file(folder: Path, name: str, seq_length: int, rank: int) -> Path:
    return folder / f"{name}-{seq_length}-{rank}.json"


def _fresh_store() -> None:
    """torchrun's own store remembers the last process group, in which a second one of this process would get lost."""
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)


if __name__ == "__main__":
    from nemo_cdt import console

    console.set_up()
    work(Path(sys.argv[1]), [int(n) for n in sys.argv[2].split(",")], sys.argv[3] if len(sys.argv) > 3 else None)
