"""What a training run says: its own lines and warnings, and of its libraries' only what a user can act on."""

import logging
import os
import re
import sys
import warnings

from tqdm import tqdm

KNOWN_AND_HARMLESS = (
    r"could not be imported: cannot import name",  # NeMo's deploy and evaluate, which need packages for serving
    r"it already exists",  # OUTPUT: it holds config.yaml
    r"\"update_logger_directory\" is True",
    r"already contains a ModelCheckpoint",  # ours takes the place of Lightning's
    r"Rerun ?State ?Machine",
    r"GPU available but not used",  # nemo_cdt.cpu answers for CUDA
    r"pynvml package is deprecated",
    r"Transformer Engine and Apex are not installed",  # `nemo-cdt doctor` says so
    r"unified memory mempool",
)
"""Messages that every run would show. Whatever is none of these appears."""


def set_up() -> None:
    """Call it before NeMo and Megatron are imported: they warn then too."""
    for text in KNOWN_AND_HARMLESS:
        warnings.filterwarnings("ignore", f"(?si).*{text}")
    harmless = _Harmless()
    for name in ("nemo_logger", "megatron.core.rerun_state_machine"):
        logging.getLogger(name).addFilter(harmless)
    import lightning.pytorch  # noqa: F401  sets its level when first imported

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # it tells of devices it sees, and gives tips
    ours = logging.getLogger("nemo_cdt")
    ours.handlers = [_AboveTheBar() if is_first_rank() else logging.NullHandler()]
    ours.setLevel(logging.INFO)
    ours.propagate = False


def is_first_rank() -> bool:
    """Also where torch.distributed is not up yet."""
    return os.environ.get("RANK", "0") == "0"


class _Harmless(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not re.search("|".join(KNOWN_AND_HARMLESS), record.getMessage(), re.IGNORECASE)


class _AboveTheBar(logging.Handler):
    """Writes to stderr without breaking the progress bar, which moves down a line."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "warning: " if record.levelno >= logging.WARNING else ""
        tqdm.write(level + record.getMessage(), file=sys.stderr)
