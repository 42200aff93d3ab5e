"""Runs a function on N ranks as torchrun would start them, in processes forked from one that has imported NeMo."""

import itertools
import multiprocessing
import os
import queue
import random
import signal
import socket
import sys
import time
import traceback
import types
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preload"])


def start_server() -> None:
    """Before any test: `nemo-cdt prepare` in its process would set another preload, and each rank import NeMo anew.

    What the ranks print is nobody's: what they return or raise is.
    """
    kept = [os.dup(number) for number in (1, 2)]
    with Path(os.devnull).open("w") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
    try:
        forkserver.ensure_running()
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def on_ranks(function: Callable[..., Any], world_size: int, *arguments: Any, timeout: float = 600) -> list[Any]:
    """``function(*arguments)`` on every rank; what each returned, by rank. A rank's failure is raised here, named."""
    results = _context.Queue()
    port = _free_port()
    processes = [
        _context.Process(target=_run, args=(function, rank, world_size, port, arguments, results), daemon=False)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    try:
        while len(found) < world_size:
            rank, ok, value = _next(results, processes, found, timeout)
            if not ok:
                raise RuntimeError(f"rank {rank} of {world_size} failed:\n{value}")
            found[rank] = value
    finally:
        for process in processes:
            if len(found) < world_size:
                process.kill()
            process.join()
    return [found[rank] for rank in range(world_size)]


def _next(results: Any, processes: list, found: dict[int, Any], timeout: float) -> Any:
    """Raises RuntimeError where a rank died without a word, as by a signal, or none speaks in time."""
    deadline = time.monotonic() + timeout
    while True:
        with suppress(queue.Empty):
            return results.get(timeout=2)
        for rank, process in enumerate(processes):
            if rank not in found and process.exitcode is not None and results.empty():
                raise RuntimeError(f"rank {rank} of {len(processes)} died: exit code {process.exitcode}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"ranks {[rank for rank in range(len(processes)) if rank not in found]} did not answer")


def started(function: Callable[..., Any], folder: Path, *arguments: Any) -> ForkServerProcess:
    """``function(*arguments)``, forked, in a session of its own; what it says is in ``folder``'s stdout, stderr."""
    process = _context.Process(target=_alone, args=(function, folder, arguments))
    process.start()
    return process


def _run(function: Callable, rank: int, world_size: int, port: int, arguments: tuple, results: Any) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        GROUP_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="tests",
    )
    _prepare()
    try:
        results.put((rank, True, function(*arguments)))
    except BaseException:
        results.put((rank, False, traceback.format_exc()))


def _alone(function: Callable, folder: Path, arguments: tuple) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        with Path(folder, name).open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    _prepare()
    function(*arguments)


def _prepare() -> None:
    import torch

    from nemo_cdt.checkpoint.writer import start_writer

    torch.set_num_threads(1)
    # What a rank spawns would import pytest's main module again, and torch, in Megatron's checkpoint writer.
    sys.modules["__main__"] = types.ModuleType("__main__")
    start_writer("fork")


_tens = itertools.count(random.randrange(500))


def _free_port() -> int:
    """None that the system gives to others, and of this pytest worker alone; nine above it are for later meetings."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    while True:
        port = 10000 + worker % 2 * 5000 + next(_tens) % 500 * 10
        with socket.socket() as server, suppress(OSError):
            server.bind(("127.0.0.1", port))
            return port
