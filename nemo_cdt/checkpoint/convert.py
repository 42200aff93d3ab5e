"""A Hugging Face folder into a checkpoint in Megatron's format, or back, without loss, and without NeMo."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_cdt.checkpoint import huggingface, megatron_checkpoint
from nemo_cdt.checkpoint.merge import base_of, read_merged
from nemo_cdt.checkpoint.progress import shown
from nemo_cdt.checkpoint.verification import verify
from nemo_cdt.checkpoint.weights import to_huggingface


def export_huggingface(checkpoint: Path, folder: Path, *, sums: bool = True) -> None:
    """Writes into ``folder``, which is there and empty, what the checkpoint holds; adapters are merged.

    Args:
        sums: compare the checkpoint's files with its checksums.

    Raises:
        ValueError: where the checkpoint is damaged or unfinished, holds more than data, or is of no
            :class:`~nemo_cdt.config.Family`.
    """
    with _megatron_imported_quietly():
        base = base_of(checkpoint)
        for each in filter(None, (checkpoint, base)):
            verify(each, sums=sums)
    model = megatron_checkpoint.read_model(checkpoint, base)
    weights = to_huggingface(read_merged(checkpoint, model), model, where=checkpoint)
    huggingface.copy_tokenizer(checkpoint / "context/tokenizer", folder)
    with shown(weights, f"{checkpoint} is exported") as read:
        huggingface.save(folder, read, model)


@contextmanager
def _megatron_imported_quietly() -> Iterator[None]:
    """A checkpoint's metadata are pickles of Megatron's classes: reading the first one imports megatron.core.

    That takes some seconds, once, changes none of torch's settings, and warns of kernels that nobody asked for here.
    """
    logger = logging.getLogger("megatron")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
