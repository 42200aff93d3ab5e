"""What the first save and the export at the end would stumble over, found before the first step."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo.lightning.io.pl import TrainerContext

from nemo_cdt.checkpoint.huggingface import config_of, copy_tokenizer
from nemo_cdt.config import Config
from nemo_cdt.config.nemo_context import read_model
from nemo_cdt.cost.memory import checkpoint_bytes
from nemo_cdt.nemo.model import CDTModel
from nemo_cdt.utils.atomic_write import real
from nemo_cdt.utils.reading import blamed_on

GIB = 1 << 30


def rehearse(config: Config, model: CDTModel) -> None:
    """Saves all of a checkpoint but its weights, exports all of it but its weights, and looks for room.

    Raises:
        ValueError: where one of them cannot be, in one line. Nothing is left of it.
    """
    checkpoints = Path(config.output, "checkpoints")
    with _place("output", checkpoints) as made:
        with blamed_on(config.output, "what describes the model cannot be saved beside its weights", whatever=True):
            TrainerContext(model=model, trainer=None, extra={}).io_dump(made / "context", yaml_attrs=["model"])
            described = read_model(made)
        with blamed_on(f"model.tokenizer={config.tokenizer}", "it cannot be exported", whatever=True):
            copy_tokenizer(made / "context/tokenizer", made / "hf")
            config_of(described, model.config.params_dtype, made / "hf").save_pretrained(made / "hf")
        if not config.lora.rank:  # adapters are small
            _require_room("output", checkpoints, made, checkpoint_bytes(config), "a checkpoint")
    if config.export.hf is not None:
        folder = Path(config.export.hf)
        with _place("export.hf", folder) as made:
            _require_room("export.hf", folder, made, checkpoint_bytes(config, optimizer=False), "the model")


@contextmanager
def _place(key: str, folder: Path) -> Iterator[Path]:
    """A folder to write into where ``folder`` is or will be, for as long as the block lasts."""
    there = next(each for each in (real(folder), *real(folder).parents) if each.exists())
    try:
        made = tempfile.mkdtemp(prefix=".rehearsal.", dir=there)
    except OSError as error:
        raise ValueError(
            f"{key}: {there} cannot be written to, {error.strerror}: set {key} to another folder"
        ) from error
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _require_room(key: str, folder: Path, made: Path, needed: float, what: str) -> None:
    free = shutil.disk_usage(made).free
    if free < needed:
        raise ValueError(
            f"{key}: {folder} has {free / GIB:.1f} GiB free, and {what} takes {needed / GIB:.1f}: make room, or set "
            f"{key} to a folder elsewhere"
        )
