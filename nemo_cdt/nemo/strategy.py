"""NeMo's strategy and precision, made safe to start and to resume."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from nemo import lightning as nl
from torch import nn

from nemo_cdt.checkpoint.checksums import Sum, noted, noting
from nemo_cdt.checkpoint.unpickling import weights_only
from nemo_cdt.megatron.fp8 import in_fp8
from nemo_cdt.megatron.torch_adam import prepare
from nemo_cdt.nemo.resharding import SHAPE


class SynchronizedPrecision(nl.MegatronMixedPrecision):
    """Waits for the parameters' initialisation and cast before NeMo hands them to DDP.

    NeMo 2.7.3 builds DDP on a side stream that waits for nothing, so it may copy parameters that are not there yet:
    most starts from random weights then die with a NaN in the first gradient.

    all_in_fp8: whether all of a step, validation too, computes its linear layers in FP8. NeMo's own ``fp8`` would
    recompute chunks of an MLP (nemo_cdt/megatron/mlp.py) in another precision than it computed them.
    """

    def __init__(self, precision: Any, *, grad_reduce_in_fp32: bool = True, all_in_fp8: bool = False) -> None:
        super().__init__(precision, grad_reduce_in_fp32=grad_reduce_in_fp32)
        self.all_in_fp8 = all_in_fp8

    @contextmanager
    def forward_context(self) -> Iterator[None]:  # of the whole forward-backward schedule
        with in_fp8() if self.all_in_fp8 else super().forward_context():
            yield

    def convert_module(self, module: nn.Module) -> nn.Module:
        module = super().convert_module(module)
        torch.cuda.synchronize()
        return module


class SynchronizedStrategy(nl.MegatronStrategy):
    """Waits for DDP's copies, made on that side stream, before anything reads them.

    shape: what a checkpoint says of the layout that saved it.
    notes: where the sums of the files that this rank writes of the last checkpoint are left, until they are asked for.
    """

    shape: dict[str, Any]
    notes: tempfile.TemporaryDirectory

    def setup_distributed(self) -> None:
        """NeMo seeds Megatron's generators, those of dropout and of a GPU's initial weights, with 1234, always."""
        super().setup_distributed()
        seed = int(os.environ["PL_GLOBAL_SEED"])  # Lightning's seed_everything
        model_parallel_cuda_manual_seed(seed + 100 * parallel_state.get_pipeline_model_parallel_rank())

    def init_model_parallel(self) -> None:
        super().init_model_parallel()
        torch.cuda.synchronize()

    def load_checkpoint(self, checkpoint_path: str | Path, selective_restore: bool = False) -> dict[str, Any]:
        """Raises ValueError for one that is damaged, whatever Megatron dies of.

        Its files were looked through before: :mod:`nemo_cdt.checkpoint.verification`.
        """
        try:
            with weights_only():
                return super().load_checkpoint(checkpoint_path, selective_restore)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            said = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise ValueError(
                f"{checkpoint_path} cannot be read ({type(error).__name__}: {said}): rename the folder, and "
                "resume=true goes on from the checkpoint before it"
            ) from error

    @torch.no_grad()  # which Megatron forgets for `dp_reshardable` alone; in fp32 what it copies into is a parameter
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any], selective_restore: bool = False) -> None:
        super().load_optimizer_state_dict(checkpoint, selective_restore)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        self.notes = tempfile.TemporaryDirectory(prefix="nemo_cdt-")
        with noting(self.notes.name):
            super().save_checkpoint(checkpoint, filepath, storage_options)

    def take_sums(self) -> dict[str, Sum]:
        """Of the files that this rank has written, by their names. Once for each checkpoint."""
        with self.notes as folder:
            return noted(folder)

    def teardown(self) -> None:
        """Lets the run's weights and optimizer go, for a run after this one in the same process.

        DDP's hooks of autograd's nodes hold it, and it and the optimizer hold the nodes: Python cannot see that circle.
        """
        for module in self.megatron_parallel.modules() if hasattr(self, "megatron_parallel") else ():
            if isinstance(module, DistributedDataParallel):
                for node in module.grad_accs:
                    node.register_hook(print).hooks_dict_ref().clear()  # all of a node's hooks are in one dict
        super().teardown()

    @property
    def sharded_state_dict_metadata(self) -> dict[str, Any]:
        return super().sharded_state_dict_metadata | {SHAPE: self.shape}

    def setup_optimizers(self, trainer: L.Trainer) -> None:
        super().setup_optimizers(trainer)
        for each in self._megatron_optimizers():
            _hide_step(each)

    def optimizer_sharded_state_dict(self, is_loading: bool = False, metadata: dict | None = None) -> dict[str, Any]:
        if is_loading:
            for wrapped in self.optimizers:
                prepare(wrapped.mcore_optimizer)
        return super().optimizer_sharded_state_dict(is_loading, metadata)

    def _megatron_optimizers(self) -> Iterator[DistributedOptimizer]:
        for wrapped in self.optimizers:
            megatron = wrapped.mcore_optimizer
            yield from getattr(megatron, "chained_optimizers", [megatron])


def _hide_step(megatron: DistributedOptimizer) -> None:
    """``dp_reshardable`` takes all that Adam keeps of a parameter to be as long as it. Torch's keeps its step there.

    Megatron saves the step apart, with what is of no parameter.
    """
    states = megatron._get_main_param_and_optimizer_states

    def without_step(model_parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        return {name: state for name, state in states(model_parameter).items() if name != "step"}

    megatron._get_main_param_and_optimizer_states = without_step
