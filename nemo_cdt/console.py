"""What a training run says: its own lines and warnings, and of its libraries' only what a user can act on."""

import logging
import os
import re
import sys
import warnings

from tqdm import tqdm

from nemo_cdt.utils.noise import PYNVML

KNOWN_AND_HARMLESS = (
    PYNVML,
    "could not be imported: cannot import name",  # NeMo's deploy and evaluate, which need packages for serving
    "it already exists",  # OUTPUT: it holds config.yaml
    "already contains a ModelCheckpoint",  # ours takes the place of Lightning's
    "Rerun ?State ?Machine",
    "Passing 'checkpoint_dir' as a Path object",  # NeMo, to Megatron
    "GPU available but not used",  # nemo_cdt.utils.cpu answers for CUDA
    "Transformer Engine and Apex are not installed",  # `nemo-cdt doctor` says so
    "transformer_engine not installed",
    "unified memory mempool",
    "fused_indices_to_multihot has reached end of life",
    "Cannot import zarr",
    "OneLogger: Setting error_handling_strategy",  # NVIDIA's telemetry, which is off
    "No exporters were provided",
    "recommended to use `self.log\\('val_",  # NeMo has reduced the loss, and we the rest
    "your dataloader is not resumable",  # Lightning's state of it; ours begins where the checkpoint ended
    "is deprecated. Please use `torch.distributed",  # torch 2.13, to Megatron
    "The .grad attribute of a Tensor that is not a leaf",  # to nemo_cdt.utils.cpu, for Megatron
    "`srun` command is available",  # no hint that a run on this machine needs
)
"""Warnings that every run would show. One that is none of these appears."""


def set_up() -> None:
    """Call it before NeMo and Megatron are imported: they warn then too."""
    for text in KNOWN_AND_HARMLESS:
        warnings.filterwarnings("ignore", f"(?si).*{text}")
    os.environ.setdefault("PYTHONWARNINGS", f"ignore:{PYNVML}")  # Megatron's checkpoint writer is a new process
    harmless = _Harmless()
    for name in ("nemo_logger", "megatron.core.rerun_state_machine", "megatron.core.dist_checkpointing.serialization"):
        logging.getLogger(name).addFilter(harmless)  # these come to NeMo's own handlers
    others = _AboveTheBar(logging.WARNING)
    others.addFilter(harmless)
    logging.getLogger().handlers = [others]
    ours = logging.getLogger("nemo_cdt")
    ours.handlers = [_AboveTheBar()] if is_first_rank() else [logging.NullHandler()]
    ours.setLevel(logging.INFO)
    ours.propagate = False
    tqdm.get_lock()  # its first line would make it, and lose a Ctrl-C that comes meanwhile


def is_first_rank() -> bool:
    """Also where torch.distributed is not up yet."""
    return os.environ.get("RANK", "0") == "0"


class _Harmless(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not re.search("|".join(KNOWN_AND_HARMLESS), record.getMessage(), re.IGNORECASE)


class _AboveTheBar(logging.Handler):
    """Writes to stderr; a progress bar moves down for it."""

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(level + record.getMessage(), file=sys.stderr)
