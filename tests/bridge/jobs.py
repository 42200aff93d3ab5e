"""What test processes run with Megatron-Bridge. Returns numpy only."""

import json
import os
import signal
from pathlib import Path
from typing import Any

from nemo_cdt.config import Config
from nemo_cdt.utils.cpu import cuda_on_cpu


def train(config: Config) -> dict[str, Any]:
    """Trains ``config``: its figures, and what each rank saw of detection."""
    masks: list[Any] = []
    with cuda_on_cpu():
        from nemo_cdt.bridge import fit

        Path(config.output).mkdir(parents=True, exist_ok=True)
        fit.fit(config, on_gpu=False, observe=lambda found: masks.append(found.noise_SB.numpy().copy()))
    return {"masks": masks, "metrics": metrics(Path(config.output))}


def train_and_be_told(config: Config, step: int) -> int:
    """:func:`train`, and SIGTERM to this rank in ``step``; the exit code."""
    with cuda_on_cpu():
        from nemo_cdt.bridge import fit
        from nemo_cdt.bridge.callbacks import Run

        right = Run.on_train_step_start

        def on_train_step_start(run: Run, context: Any) -> None:
            right(run, context)
            if run.steps == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)

        Run.on_train_step_start = on_train_step_start  # type: ignore[method-assign]
        Path(config.output).mkdir(parents=True, exist_ok=True)
        try:
            fit.fit(config, on_gpu=False)
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
