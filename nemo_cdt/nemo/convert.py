"""A Hugging Face model into a NeMo checkpoint, or back, without loss: what is in the source is in the destination.

Weights keep their precision and their vocabulary, so that there and back again is the identity, bit for bit. Of a LoRA
checkpoint the adapters are merged into the weights that they adapt.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from nemo_cdt.utils.atomic_write import new_folder


def convert(source: Path, destination: Path, *, sums: bool = True) -> None:
    """``source`` decides the direction: a Hugging Face folder, or a NeMo checkpoint such as ``checkpoints/step=99``.

    Runs in one process on the CPU, with few tensors, or one file of the export, in memory. Writes ``destination`` whole
    or not at all.

    Args:
        sums: compare a checkpoint's files with its checksums.

    Raises:
        ValueError: where ``source`` is neither, is of no :class:`~nemo_cdt.config.Family` or lacks a weight, or
            ``destination`` is not empty; where a checkpoint is damaged, or holds more than data.
    """
    from_hf = (source / "config.json").is_file()
    if (source / "checkpoints/last").exists():
        raise ValueError(f"{source} is a run: convert {source / 'checkpoints/last'}")
    if not (from_hf or (source / "weights").is_dir()):
        raise ValueError(
            f"{source} has no config.json, as a Hugging Face model has, and no weights folder, as a NeMo checkpoint"
        )
    with new_folder(destination) as folder:
        if from_hf:
            with _cuda_answered():
                _import(source, folder)
        else:
            _export(source, folder, sums)


def _cuda_answered() -> AbstractContextManager[None]:
    """Where there is no GPU, Megatron must be first imported inside, for what the process may do with it later."""
    if torch.cuda.is_available():
        return nullcontext()
    from nemo_cdt.utils.cpu import cuda_on_cpu

    return cuda_on_cpu()


def _import(source: Path, folder: Path) -> None:
    from nemo_cdt.checkpoint import huggingface, megatron_writing
    from nemo_cdt.checkpoint.progress import shown
    from nemo_cdt.checkpoint.weights import to_megatron
    from nemo_cdt.config.huggingface import read_model
    from nemo_cdt.nemo.context import write_context

    model = read_model(source)
    with shown(to_megatron(huggingface.read_weights(source), model, where=source), f"{source} is converted") as weights:
        megatron_writing.write(folder, weights, model, source, write_context)


def _export(source: Path, folder: Path, sums: bool) -> None:
    from nemo_cdt.checkpoint.convert import export_huggingface

    export_huggingface(source, folder, sums=sums)
