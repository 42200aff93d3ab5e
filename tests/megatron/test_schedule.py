"""The schedule leaves everything as it found it, and steps aside where there is no backward."""

from pathlib import Path
from typing import Any

import pytest

from nemo_cdt.config import Config, Parallel
from nemo_cdt.utils.cpu import cuda_on_cpu
from tests.ranks import on_ranks
from tests.runs import small_run, write_documents

FUNCTIONS = ("finalize_model_grads_func", "grad_sync_func", "param_sync_func", "no_sync_func", "grad_scale_func")


class StopError(Exception):
    pass


def broken_off(config: Config) -> dict[str, Any]:
    """A training run that dies in its second detection; what of the model is then not as before the first."""
    with cuda_on_cpu():
        import lightning.pytorch as L
        from megatron.core.distributed import DistributedDataParallel
        from megatron.core.utils import get_model_config

        from nemo_cdt.megatron.embedding import find_embedding
        from nemo_cdt.nemo import assemble
        from nemo_cdt.nemo.callback import ObjectiveCallback

        before: dict[str, Any] = {}

        def state(chunks: list) -> dict[str, Any]:
            embedding, modules = find_embedding(chunks), [m for chunk in chunks for m in chunk.modules()]
            return {
                "trainable": [p.requires_grad for chunk in chunks for p in chunk.parameters()],
                "hooks": len(embedding._forward_hooks) if embedding else 0,
                "gather hooks": [
                    len(m.remove_forward_pre_hook_handles) for m in modules if isinstance(m, DistributedDataParallel)
                ],
                "functions": [id(getattr(get_model_config(chunk), f)) for chunk in chunks for f in FUNCTIONS],
            }

        class Before(L.Callback):
            def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
                before.setdefault("state", state(list(trainer.strategy.megatron_parallel)))

        def stop(_: Any) -> None:
            before["seen"] = before.get("seen", 0) + 1
            if before["seen"] == 2:
                raise StopError

        Path(config.output).mkdir(parents=True, exist_ok=True)
        trainer, model, data = assemble.build(config, on_gpu=False)
        trainer.callbacks.insert(0, Before())
        next(c for c in trainer.callbacks if isinstance(c, ObjectiveCallback)).observer = stop
        try:
            trainer.fit(model, data)
        except StopError:
            after = state(list(trainer.strategy.megatron_parallel))
            return {"before": before["state"], "after": after}
        return {}


@pytest.mark.parametrize(
    "parallel", [Parallel(), Parallel(overlap_grad_reduce=True, overlap_param_gather=True)], ids=["plain", "overlapped"]
)
def test_nothing_stays_changed_after_an_exception(parallel: Parallel, tmp_path: Path) -> None:
    write_documents(tmp_path / "d.jsonl", kind="sft", count=20, longest=60)
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", parallel=parallel)
    states = on_ranks(broken_off, 1, config)[0]
    assert all(states["before"]["trainable"])
    assert states["after"] == states["before"]


def test_a_forward_only_call_passes_through() -> None:
    from nemo_cdt.objectives.cdt.schedule import TwoPassSchedule

    def schedule(**call: Any) -> list:
        return [call]

    call = {
        "forward_step_func": None,
        "data_iterator": iter([]),
        "model": None,
        "num_microbatches": 2,
        "forward_only": True,
        "seq_length": 8,
    }
    denoising = TwoPassSchedule(schedule, detector=None, prepare=None, pipelined=False)  # type: ignore[arg-type]
    assert denoising(**call) == [call]
