"""Which passes are in FP8. A stand-in marks them: FP8 itself needs a GPU (benchmarks/run.py fp8)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nemo_cdt.config import FP8, Config
from nemo_cdt.utils.cpu import cuda_on_cpu
from tests.ranks import on_ranks
from tests.runs import small_run, write_documents


def marked(config: Config) -> dict[str, list[bool]]:
    """Of each layer's MLP whether its forwards and backwards were in FP8, in detection and in training."""
    with cuda_on_cpu():
        from megatron.core.transformer.mlp import MLP

        from nemo_cdt.nemo import assemble, model, strategy
        from nemo_cdt.nemo.callback import ObjectiveCallback
        from nemo_cdt.objectives.cdt import schedule

        inside, now = [False], ["detection"]
        found: dict[str, list[bool]] = {f"{p} {w}": [] for p in [*now, "training"] for w in ("forward", "backward")}

        @contextmanager
        def in_fp8() -> Iterator[None]:
            before, inside[0] = inside[0], True
            try:
                yield
            finally:
                inside[0] = before

        def forward(*arguments: Any) -> Any:
            output, bias = right(*arguments)
            found[f"{now[0]} forward"].append(inside[0])
            output.register_hook(lambda _: found[f"{now[0]} backward"].append(inside[0]))
            return output, bias

        def detected(_: Any) -> None:
            now[0] = "training"

        schedule.in_fp8 = strategy.in_fp8 = in_fp8
        model.unsupported = lambda: None
        right, MLP.forward = MLP.forward, forward
        Path(config.output).mkdir(parents=True)
        trainer, module, data = assemble.build(config, on_gpu=False)
        next(c for c in trainer.callbacks if isinstance(c, ObjectiveCallback)).observer = detected
        trainer.fit(module, data)
        assemble.tear_down()
        return found


@pytest.mark.parametrize(
    ("fp8", "detection", "training"),
    [(FP8.none, False, False), (FP8.detection, True, False), (FP8.both, True, True)],
)
def test_the_passes_that_are_asked_for_are_in_fp8(fp8: FP8, detection: bool, training: bool, tmp_path: Path) -> None:
    write_documents(tmp_path / "d.jsonl", kind="sft", count=8, longest=60)
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", steps=1, global_batch=1)
    config.data.validation_samples = 0
    config.trainer.fp8 = fp8

    found = on_ranks(marked, 1, config)[0]

    layers = config.model.num_layers
    for name, inside in (("detection", detection), ("training", training)):
        assert found[f"{name} forward"] == found[f"{name} backward"] == [inside] * layers
