"""What a resumed run may change, checked before OUTPUT/config.yaml of its earlier attempt is overwritten."""

from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from nemo_cdt.config.files import load
from nemo_cdt.config.schema import Config, walk

MAY_CHANGE = {
    "name",
    "output",
    "resume",
    "framework",
    "compare_to",
    "report",
    "data.num_workers",
    "trainer.max_steps",
    "trainer.micro_batch_size",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.accelerator",
    "trainer.recompute",
    "trainer.mlp_chunks",
    "trainer.offload_activations",
    "objective.detection_recompute",
    "trainer.val_interval",
    "trainer.checkpoint_interval",
    "trainer.checkpoints_kept",
    "trainer.verify_checkpoints",
    "trainer.checkpoint_resharding",
    "trainer.async_save",
    "trainer.profile",
}
"""And all of the groups ``parallel``, ``launcher``, ``logger`` and ``export``. The rest decides what is learned."""


def earlier_attempt(config: Config) -> Config | None:
    """The run that OUTPUT holds, if any. One that saved nothing binds nobody: it starts anew under any settings."""
    file, folder = Path(config.output, "config.yaml"), Path(config.output, "checkpoints")
    saved = any(folder.glob("step=*")) or any(folder.glob("iter_*"))
    return load(file) if file.exists() and saved else None


def require_same_run(config: Config, earlier: Config) -> None:
    """Raise ValueError for a setting that would make another run of ``earlier``."""
    before = dict(walk(earlier))
    for name, value in walk(config):
        free = name in MAY_CHANGE or name.startswith(("parallel.", "launcher.", "logger.", "export."))
        if not (free or is_dataclass(value) or value == before.get(name)):
            here, there = _typed(value), _typed(before.get(name))
            raise ValueError(
                f"{name}={here}, but the run in output={config.output} has {there}: "
                f"set {name}={there} to resume it, or another output"
            )


def _typed(value: Any) -> str:
    """As it is typed on a command line."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
