"""The checkpoint that a run starts from."""

import logging
from pathlib import Path

from filelock import FileLock

from nemo_cdt.checkpoint import megatron_checkpoint
from nemo_cdt.checkpoint.verification import require_whole
from nemo_cdt.config import Config, Model
from nemo_cdt.config.fitting import as_override, differing, require_fitting
from nemo_cdt.config.huggingface import read_model
from nemo_cdt.nemo.convert import convert
from nemo_cdt.validation import check_vocabulary

logger = logging.getLogger("nemo_cdt")


def initial_checkpoint(config: Config) -> tuple[Path | None, int | None]:
    """What ``init`` names, as a NeMo checkpoint, and the vocabulary size that it or ``model`` sets.

    A Hugging Face model is converted into OUTPUT/init, once. The path is absolute: checkpoints of adapters record it.

    Raises:
        ValueError: where it holds another architecture than the ``model`` group, or a vocabulary that cannot be split,
            and where a checkpoint is damaged or holds more than data.
    """
    sums = config.trainer.verify_checkpoints
    if config.init.nemo:
        require_whole(Path(config.init.nemo), sums=sums)
        found = megatron_checkpoint.read_model(Path(config.init.nemo))
        _require_fitting(config, found, f"init.nemo={config.init.nemo}")
        return Path(config.init.nemo).resolve(), found.vocab_size
    if not config.init.hf:
        return None, config.model.vocab_size
    found = read_model(Path(config.init.hf))
    _require_fitting(config, found, f"init.hf={config.init.hf}")
    converted = Path(config.output, "init").resolve()
    with FileLock(f"{config.output}/.init.lock"):  # one rank converts, the others wait and find it
        if not converted.exists():
            convert(Path(config.init.hf), converted)
    require_whole(converted, sums=sums)
    return converted, found.vocab_size


def _require_fitting(config: Config, found: Model, where: str) -> None:
    check_vocabulary(config, found.vocab_size or 0, where)
    require_fitting(config.model, found, where)
    for name, (wanted, there) in differing(config.model, found).items():
        ours, theirs = as_override(name, wanted), as_override(name, there)
        logger.warning("%s, where %s has %s: its context is extended, or this is a mistake", ours, where, theirs)
