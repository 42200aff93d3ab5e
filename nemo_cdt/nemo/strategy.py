"""NeMo's strategy and precision, made safe to start; see the race in design.md section 4."""

import torch
from nemo import lightning as nl
from torch import nn


class SynchronizedPrecision(nl.MegatronMixedPrecision):
    """Waits for the parameters' initialisation and cast before NeMo hands them to DDP.

    NeMo 2.7.3 builds DDP on a side stream that waits for nothing, so it may copy parameters that are not there yet:
    most starts from random weights then die with a NaN in the first gradient.
    """

    def convert_module(self, module: nn.Module) -> nn.Module:
        module = super().convert_module(module)
        torch.cuda.synchronize()
        return module


class SynchronizedStrategy(nl.MegatronStrategy):
    """Waits for DDP's copies, made on that side stream, before anything reads them."""

    def init_model_parallel(self) -> None:
        super().init_model_parallel()
        torch.cuda.synchronize()
