"""Trains with Megatron-Bridge: its model, optimizer, loop and checkpoints; our rows, objective and figures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from megatron.bridge import AutoBridge
from megatron.bridge.training import train as loop
from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.bridge.training.pretrain import pretrain

from nemo_cdt.bridge.callbacks import Run
from nemo_cdt.bridge.container import container_of
from nemo_cdt.bridge.data import RowStreams
from nemo_cdt.bridge.model import bridge_of, provider_of
from nemo_cdt.config import Config
from nemo_cdt.data.tokenizer import load_tokenizer
from nemo_cdt.megatron.rows import load_rows
from nemo_cdt.objectives import objective_of


def fit(config: Config, on_gpu: bool, observe: Callable[[Any], None] | None = None) -> None:
    """Trains to ``trainer.max_steps``, then exports."""
    checkpoints = Path(config.output, "checkpoints")
    resume = config.resume and (checkpoints / "latest_checkpointed_iteration.txt").exists()
    bridge = bridge_of(config)
    provider = provider_of(bridge, config, load=not resume, on_gpu=on_gpu)
    streams = RowStreams()
    rows = load_rows(config, load_tokenizer(config.tokenizer), provider.vocab_size)
    run = Run(config, objective_of(config), rows, streams, None, observe)
    container = container_of(config, provider, streams, resume=resume, on_gpu=on_gpu)
    export = [Export(bridge, Path(config.export.hf))] if config.export.hf else []
    with _scheduled(run.wrap):
        pretrain(container, run.forward_step, callbacks=[run, *export])


@contextmanager
def _scheduled(wrap: Callable[[Callable[..., list]], Callable[..., list]]) -> Iterator[None]:
    """Bridge's training takes its schedule by one name, and validation by another, which stays as it is."""
    given = loop.get_forward_backward_func
    with patch.object(loop, "get_forward_backward_func", lambda *a, **k: wrap(given(*a, **k))):
        yield


class Export(Callback):
    """In time: afterwards Bridge has let go of its process groups."""

    def __init__(self, bridge: AutoBridge, folder: Path) -> None:
        self.bridge = bridge
        self.folder = folder

    def on_train_end(self, context: CallbackContext) -> None:
        self.bridge.save_hf_pretrained(context.model, self.folder, show_progress=False)
