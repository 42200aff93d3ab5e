"""Trains with Megatron-Bridge: its model, optimizer, loop and checkpoints; our rows, objective and figures."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import torch
from megatron.bridge.training import initialize
from megatron.bridge.training import train as loop
from megatron.bridge.training.pretrain import pretrain

from nemo_cdt.bridge import checkpoints
from nemo_cdt.bridge.callbacks import Run
from nemo_cdt.bridge.container import container_of
from nemo_cdt.bridge.data import RowStreams
from nemo_cdt.bridge.export import Export
from nemo_cdt.bridge.model import bridge_of, provider_of
from nemo_cdt.config import Config
from nemo_cdt.console import is_first_rank
from nemo_cdt.cost.memory import detection_recompute
from nemo_cdt.data.tokenizer import load_tokenizer
from nemo_cdt.megatron.rows import load_rows
from nemo_cdt.objectives import objective_of
from nemo_cdt.utils.user_errors import TrainingFailedError
from nemo_cdt.validation import record_data
from nemo_cdt.versions import write_versions

log = logging.getLogger(__name__)


def fit(config: Config, on_gpu: bool, observe: Callable[[Any], None] | None = None) -> None:
    """Trains to ``trainer.max_steps``, then exports.

    Raises:
        SystemExit: with 143, after saving, where SIGTERM asked for it.
        TrainingFailedError: where a loss or a gradient is no number.
    """
    output = Path(config.output)
    done = checkpoints.steps_done(output / "checkpoints") if config.resume else 0
    if done >= config.trainer.max_steps:
        log.info(
            f"nothing to train: {output}/checkpoints has {done} steps, trainer.max_steps={config.trainer.max_steps}"
        )
        return
    if config.resume:
        log.info(f"this run goes on from step {done}" if done else f"nothing to resume in {output}/checkpoints")
    bridge = bridge_of(config)
    provider = provider_of(bridge, config, load=not done, on_gpu=on_gpu)
    streams, tokenizer, objective = RowStreams(), load_tokenizer(config.tokenizer), objective_of(config)
    recompute = _detection_recompute(config, on_gpu) if objective.detects else None
    rows = load_rows(config, tokenizer, provider.vocab_size)
    run = Run(config, objective, rows, streams, recompute, observe)
    container = container_of(config, provider, streams, resume=done > 0, on_gpu=on_gpu)
    if is_first_rank():
        write_versions(output / "versions.json")
        record_data(config)
    _join()
    exports = [Export(bridge, config)] if config.export.hf else []
    with _ours(run.wrap):
        try:
            pretrain(container, run.forward_step, callbacks=[run, *exports])
        except TrainingFailedError as error:
            saved = checkpoints.steps_done(output / "checkpoints")
            left = f"step {saved} is the last checkpoint before it" if saved else "no checkpoint was saved before it"
            raise TrainingFailedError(f"{error}. {left}: set a lower optim.lr, or optim.warmup_steps") from None
        except SystemExit:
            log.warning(f"stopped by SIGTERM with {run.steps} steps saved: resume=true goes on from there")
            raise SystemExit(143) from None


@contextmanager
def _ours(wrap: Callable[[Callable[..., list]], Callable[..., list]]) -> Iterator[None]:
    """Bridge's training takes its schedule by one name, and validation by another, which stays as it is.

    Megatron's helpers for data sets of its own are not compiled: where a wheel is installed there is no Makefile for
    that, and Bridge would exit.
    """
    given = loop.get_forward_backward_func
    with (
        patch.object(loop, "get_forward_backward_func", lambda *a, **k: wrap(given(*a, **k))),
        patch.object(initialize, "compile_helpers", lambda: None),
    ):
        yield


def _join() -> None:
    """A process of its own is the only rank; a launcher has said otherwise."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**alone, "MASTER_PORT": str(free.getsockname()[1])}.items():
            os.environ.setdefault(name, value)


def _detection_recompute(config: Config, on_gpu: bool) -> Any:
    device = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory if on_gpu else None
    chosen, _ = detection_recompute(config, device or psutil.virtual_memory().total / config.trainer.devices)
    return chosen
