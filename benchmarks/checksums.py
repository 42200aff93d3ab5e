"""What checksums cost: a file written with and without its sum, and compared before it is read.

``gib`` of random bytes in blocks of 64 MiB, as Megatron's writers hand over tensors, to memory (/dev/shm), where
nothing but the sum can cost time; the least of the repetitions. A disk is slower, and hides the sum.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.measured import Row, on_gpu
from nemo_cdt.checkpoint.checksums import open_summed
from nemo_cdt.checkpoint.sums import Sum, sum_of

GIB = 8 if on_gpu() else 1
PART = 1 << 26


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    part = torch.randint(0, 256, (PART,), dtype=torch.uint8)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        file = Path(folder, "part.distcp")
        told: list[Sum] = []
        plain = _least(arguments.repetitions, lambda: _write(file.open("wb"), part))
        summed = _least(
            arguments.repetitions,
            lambda: _write(open_summed(str(file), told.append), part),
        )
        compared = _least(arguments.repetitions, lambda: sum_of(file))
        assert told[-1] == sum_of(file)
    yield {
        "gib": GIB,
        "write_s": plain,
        "write_with_sum_s": summed,
        "sum_gib_per_s": GIB / max(summed - plain, 1e-9),
        "compare_s": compared,
        "compare_gib_per_s": GIB / compared,
    }


def _least(repetitions: int, act: Callable[[], object]) -> float:
    found = []
    for _ in range(repetitions):
        start = time.perf_counter()
        act()
        found.append(time.perf_counter() - start)
    return min(found)


def _write(file: io.BufferedWriter, part: torch.Tensor) -> None:
    with file:
        for _ in range(GIB * (1 << 30) // PART):
            file.write(memoryview(part.numpy()))
