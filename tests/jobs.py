"""What test processes run: a whole training run, with what the tests want to see of it. Returns numpy only."""

import functools
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch

from nemo_cdt.config import Config
from nemo_cdt.cpu import cuda_on_cpu


def train(config: Config, mutate: str | None = None) -> dict[str, Any]:
    """Trains ``config``; ``mutate`` names a function of :mod:`tests.mutations` that breaks something first."""
    with cuda_on_cpu():
        from nemo_cdt.nemo import assemble
        from nemo_cdt.nemo.callback import ContextDenoising

        if mutate:
            from tests import mutations

            getattr(mutations, mutate)()
        Path(config.output).mkdir(parents=True, exist_ok=True)
        trainer, model, data = assemble.build(config, on_gpu=False)
        seen = Seen()
        trainer.callbacks.insert(0, seen)
        for callback in trainer.callbacks:
            if isinstance(callback, ContextDenoising):
                callback.observer = functools.partial(seen.detection, trainer)
        trainer.fit(model, data)
        result = {
            "initial": seen.initial,
            "final": _weights(model),
            "detections": seen.detections,
            "losses": seen.losses,
            "metrics": seen.metrics,
            "weight_gradients_after_detection": seen.weight_gradients,
        }
        assemble.tear_down()
        return result


class Seen(L.Callback):
    def __init__(self) -> None:
        self.initial: dict[str, np.ndarray] = {}
        self.detections: list[dict[str, Any]] = []
        self.losses: list[float] = []
        self.metrics: list[dict[str, float]] = []
        self.weight_gradients: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.initial = _weights(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items()})
        self.losses.append(float(trainer.callback_metrics["reduced_train_loss"]))

    def detection(self, trainer: Any, found: Any) -> None:
        """Keeps one record a row: real positions, noise mask and delta, on this rank."""
        if len(self.weight_gradients) == trainer.global_step:  # the step's first micro-batch
            parameters = list(trainer.strategy.megatron_parallel.parameters())
            self.weight_gradients.append(max(float(p.main_grad.abs().max()) for p in parameters))
            assert all(p.grad is None for p in parameters)
        share = {k: found.share(found.batch[k].t()).numpy() for k in ("positions", "documents", "tokens")}
        for row in range(share["tokens"].shape[1]):
            real = share["documents"][:, row] >= 0
            self.detections.append(
                {
                    "step": trainer.global_step,
                    "positions": share["positions"][real, row],
                    "documents": share["documents"][real, row],
                    "tokens": share["tokens"][real, row],
                    "noise": found.noise_SB.numpy()[real, row],
                    "score": found.score_SB.numpy()[real, row],
                    "delta": found.delta_SBH.float().numpy()[real, row],
                    "threshold": found.threshold_N.numpy(),
                }
            )


def _weights(model: Any) -> dict[str, np.ndarray]:
    module = model.module
    while hasattr(module, "module"):
        module = module.module
    return {k: v.detach().float().numpy().copy() for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}
