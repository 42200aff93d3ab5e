"""Memory and time of `nemo-cdt convert`: a Hugging Face model of random weights into a NeMo checkpoint, and back.

The model has Llama-3.1-70B's widths and ``--layers`` of its layers, bf16; without either a GPU or ``--layers`` it is
the tiny one. Each conversion is a process of its own, whose time includes its imports; the row ``nothing`` is the tiny
model's. ``--beside DIR`` converts with another checkout's code too. The disk of ``TMPDIR`` must hold the model thrice.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch

from benchmarks.measured import ROOT, Row, named
from nemo_cdt.checkpoint import huggingface
from nemo_cdt.checkpoint.weights import Weights, huggingface_shapes
from nemo_cdt.config import Model
from nemo_cdt.data.tokenizer import load_tokenizer

INTERVAL = 0.1
"""Seconds between two looks at the memory."""
VOCABULARY = 128256


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    tiny, layers = named("tiny", None), arguments.layers
    model = replace(named("llama31_70b", layers), vocab_size=VOCABULARY) if layers else tiny
    with TemporaryDirectory() as made:
        small, large = Path(made, "small"), Path(made, "large")
        write(small, tiny)
        write(large, model)
        for code in [ROOT, *([Path(arguments.beside).resolve()] if arguments.beside else [])]:
            row = {"code": "this" if code == ROOT else "beside"}
            yield row | {"conversion": "nothing"} | converted(code, small, Path(made, "none"))
            yield row | {"conversion": "to NeMo"} | converted(code, large, Path(made, "nemo"))
            found = converted(code, Path(made, "nemo"), Path(made, "back"))
            yield row | {"conversion": "back"} | found | {"same": same(large, Path(made, "back"))}
            for name in ("none", "nemo", "back"):
                shutil.rmtree(Path(made, name))


def write(folder: Path, model: Model) -> None:
    torch.manual_seed(0)
    folder.mkdir()
    load_tokenizer("byte").save_pretrained(folder)
    like = {n: torch.empty(s, dtype=torch.bfloat16, device="meta") for n, s in huggingface_shapes(model).items()}
    huggingface.save(folder, Weights(like, lambda n: torch.empty_like(like[n], device="cpu").normal_(0, 0.02)), model)


def converted(code: Path, source: Path, destination: Path) -> Row:
    """Seconds, and the most memory of the process and its children, without and with what they have mapped of files."""
    start, used, most = time.perf_counter(), _cpu_seconds(), (0, 0)
    command = [sys.executable, "-m", "nemo_cdt.cli", "convert", str(source), str(destination)]
    with subprocess.Popen(command, cwd=code, env=os.environ | {"PYTHONPATH": str(code)}) as process:
        while process.poll() is None:
            most = tuple(map(max, most, memory(process.pid)))
            time.sleep(INTERVAL)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise ValueError(f"{' '.join(command)} failed: exit code {process.returncode}")
    size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
    found = {"gib": size / 2**30, "seconds": seconds, "cpu_seconds": _cpu_seconds() - used}
    return found | {"own_gib": most[0] / 2**30, "with_mapped_gib": most[1] / 2**30}


def _cpu_seconds() -> float:
    """Of children that have ended; on a machine that others use, they tell more than the clock."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory(process: int) -> tuple[int, int]:
    """Shared pages count once: as the kernel deals them out, in parts, to those who share them."""
    own = all_of_it = 0
    with suppress(psutil.NoSuchProcess, OSError):
        parent = psutil.Process(process)
        for each in (parent, *parent.children(recursive=True)):
            lines = Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines()[1:]
            sizes = {name: int(size.split()[0]) << 10 for name, size in (line.split(":") for line in lines)}
            own, all_of_it = own + sizes["Pss_Anon"] + sizes["Pss_Shmem"], all_of_it + sizes["Pss"]
    return own, all_of_it


def same(one: Path, other: Path) -> bool:
    """Whether they hold the same tensors, bit for bit."""
    first, second = map(huggingface.read_weights, (one, other))
    bits = partial(torch.Tensor.view, dtype=torch.int16)
    return first.keys() == second.keys() and all(torch.equal(*map(bits, (first[n], second[n]))) for n in first)
