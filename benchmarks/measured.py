"""What is measured and how it is kept: repetitions, memory, attempts that may not fit, rows on disk as they come."""

import gc
import json
import math
import re
import shlex
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import OmegaConf

from nemo_cdt.config import Model
from nemo_cdt.utils.atomic_write import atomic_write
from nemo_cdt.versions import versions

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
SEARCH = (32768, 8192, math.inf) if torch.cuda.is_available() else (256, 128, 512)
"""Where the search for the longest sequence starts, its steps, and its end: a CPU does not run out in time."""


def on_gpu() -> bool:
    return torch.cuda.is_available()


def shape(num_layers: int | None) -> Model:
    """The model that is measured: Llama-3.1-8B, without a GPU the tiny one."""
    return named("llama31_8b" if on_gpu() else "tiny", num_layers)


def named(name: str, num_layers: int | None) -> Model:
    """A file of conf/model, with other layers than its own where they are given; tiny's vocabulary is of 384."""
    values = OmegaConf.load(ROOT / f"conf/model/{name}.yaml")
    model = cast(Model, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Model(vocab_size=384)), values)))
    return replace(model, num_layers=num_layers or model.num_layers)


def repeated(values: list[float]) -> Row:
    """Repetitions of one figure: the median, and how far they spread."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "all": values}


def synchronize() -> None:
    if on_gpu():
        torch.cuda.synchronize()


def reset_peak_memory() -> None:
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_gib() -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if on_gpu() else None


def timed(step: Callable[..., Any], *arguments: Any) -> tuple[float, float | None]:
    """Seconds and peak memory in GiB of ``step(*arguments)``, the device's work included."""
    reset_peak_memory()
    synchronize()
    start = time.perf_counter()
    step(*arguments)
    synchronize()
    return time.perf_counter() - start, peak_memory_gib()


def attempted(measure: Callable[..., Row], *arguments: Any) -> Row:
    """What ``measure(*arguments)`` finds, or what it died of; then the memory that it held is free again."""
    try:
        return measure(*arguments)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        text = str(error)
        row = {"error": text.strip().split("\n")[0][:300], "out_of_memory": is_out_of_memory(error)}
        if not row["out_of_memory"]:
            traceback.print_exc()
    gc.collect()
    if on_gpu():
        torch.cuda.empty_cache()
        row["left_gib"] = torch.cuda.memory_allocated() / 2**30
    return row


def is_out_of_memory(error: RuntimeError) -> bool:
    """cuBLAS, cuDNN and Transformer Engine allocate too, and say it in words of their own."""
    words = r"out of memory|ALLOC_FAILED|cudaErrorMemoryAllocation"
    return isinstance(error, torch.OutOfMemoryError) or re.search(words, str(error), re.IGNORECASE) is not None


def longest(attempt: Callable[[int], Row], start: int, resolution: int, most: float = math.inf) -> Iterator[Row]:
    """A row for each length that is tried: doubled from ``start`` until one does not fit, then bisected.

    Ends with a row that brackets the longest: ``fits`` and ``does_not_fit``. Tries nothing above ``most``, and stops at
    an error that is not of memory.
    """
    fits, fails, length = 0, None, start
    while fails is None or fails - fits > resolution:
        row = attempt(length)
        yield {"seq_length": length} | row
        if "error" not in row:
            fits = length
        elif row["out_of_memory"]:
            fails = length
        else:
            break
        length = 2 * fits if fails is None else (fits + fails) // 2 // resolution * resolution
        if length in (fits, fails) or length > most:
            break
    yield {"fits": fits, "does_not_fit": fails}


def command() -> str:
    """What was typed, where it was a script of benchmarks/."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


class Results:
    """NAME_DEVICE_DATE.json in ``folder``, complete after every row. What is there already is never written over."""

    def __init__(self, name: str, folder: Path, settings: Row) -> None:
        self.rows: list[Row] = []
        self.head: Row = {
            "benchmark": name,
            "command": command(),
            "settings": settings,
            "date": time.strftime("%Y-%m-%d"),
            "versions": versions(),
        }
        device = re.sub(r"nvidia|[^a-z0-9]+", " ", self.head["versions"]["device"].lower()).split()
        stem = f"{name}_{'_'.join(device)}_{self.head['date']}"
        names = (f"{stem}{suffix}.json" for suffix in ["", *(f"_{n}" for n in range(2, 1000))])
        self.path = next(path for path in map(folder.joinpath, names) if not path.exists())
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.write()
        print("  ".join(f"{name} {_cell(value)}" for name, value in row.items()), flush=True)

    def write(self, **more: Any) -> None:
        atomic_write(self.path, json.dumps(self.head | more | {"rows": self.rows}, indent=1))


def table(rows: list[Row]) -> str:
    """Rows under the names of their figures; of repetitions the median, of an error its first words."""
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if _is_figure(value)))
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in cells)


def _is_figure(value: Any) -> bool:
    return isinstance(value, (str, int, float)) or (isinstance(value, dict) and "median" in value)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("median", value)
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:40]
