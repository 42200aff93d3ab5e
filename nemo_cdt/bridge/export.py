"""The trained model as a Hugging Face folder, streamed from all ranks tensor by tensor."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from megatron.bridge import AutoBridge
from megatron.bridge.training.callbacks import Callback, CallbackContext

from nemo_cdt.bridge.model import DTYPES
from nemo_cdt.checkpoint.exported import ExportError, replacing
from nemo_cdt.checkpoint.huggingface import config_of, copy_tokenizer, has_tokenizer
from nemo_cdt.config import Config

log = logging.getLogger(__name__)


class Export(Callback):
    """When training ends: afterwards Bridge has let go of its process groups."""

    def __init__(self, bridge: AutoBridge, config: Config) -> None:
        self.bridge = bridge
        self.config = config

    def on_train_end(self, context: CallbackContext) -> None:
        """Raises ValueError where the model cannot be put there. Collective: rank 0 writes."""
        folder = Path(self.config.export.hf or "")
        try:
            with self._new(folder) as new:
                self.bridge.save_hf_weights(context.model, new, show_progress=False)
        except ExportError as error:
            raise ValueError(f"export.hf={error}; training is done and its checkpoint is safe") from error
        if torch.distributed.get_rank() == 0:
            log.info(f"exported to {folder}, for transformers.AutoModelForCausalLM")

    @contextmanager
    def _new(self, folder: Path) -> Iterator[Path]:
        if torch.distributed.get_rank() != 0:
            yield folder
            return
        with replacing(folder, Path(self.config.output)) as new:
            source = Path(self.config.tokenizer)
            if has_tokenizer(source):
                copy_tokenizer(source, new)
            config_of(self.config.model, DTYPES[self.config.trainer.precision], new).save_pretrained(new)
            yield new
