"""Detection recomputes by its own policy; that it changes no number is tested in tests/test_layouts.py."""

from pathlib import Path

import pytest

from nemo_cdt.config import Config, Recompute
from nemo_cdt.objectives.cdt import DetectionRecompute
from nemo_cdt.utils.cpu import cuda_on_cpu
from tests.ranks import on_ranks
from tests.runs import small_run, write_documents


def forwards(config: Config) -> tuple[int, int, list[bool]]:
    """How often one step ran a layer's MLP in detection and in training; and what the layers are left with."""
    with cuda_on_cpu():
        from megatron.core.transformer.mlp import MLP
        from megatron.core.transformer.transformer_layer import TransformerLayer

        from nemo_cdt.nemo import assemble
        from nemo_cdt.nemo.callback import ObjectiveCallback

        calls: list[str] = []
        right = MLP.forward
        MLP.forward = lambda *arguments: calls.append("mlp") or right(*arguments)
        Path(config.output).mkdir(parents=True)
        trainer, model, data = assemble.build(config, on_gpu=False)
        detected: list[int] = []
        next(c for c in trainer.callbacks if isinstance(c, ObjectiveCallback)).observer = lambda _: detected.append(
            len(calls)
        )
        trainer.fit(model, data)
        left = [m.recompute_mlp for m in model.modules() if isinstance(m, TransformerLayer)]
        assemble.tear_down()
        return detected[0], len(calls) - detected[0], left


@pytest.mark.parametrize(
    ("training", "detection", "expected"),
    [
        ("none", "none", (1, 1)),
        ("full", "none", (1, 2)),
        ("selective", "none", (1, 2)),
        ("none", "selective", (2, 1)),
        ("selective", "full", (2, 2)),
    ],
)
def test_each_pass_runs_a_layer_as_often_as_its_policy_says(
    training: str, detection: str, expected: tuple[int, int], tmp_path: Path
) -> None:
    write_documents(tmp_path / "d.jsonl", kind="sft", count=8, longest=60)
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", steps=1, global_batch=1)
    config.data.validation_samples = 0
    config.trainer.recompute = Recompute(training)
    config.objective.detection_recompute = DetectionRecompute(detection)
    in_detection, in_training, left = on_ranks(forwards, 1, config)[0]
    layers = config.model.num_layers
    assert (in_detection, in_training) == (expected[0] * layers, expected[1] * layers)
    assert left == [training == "selective"] * layers


def test_mlp_chunks_are_computed_one_by_one(tmp_path: Path) -> None:
    """Forwards of chunks: the layer's first, its recomputation, and each chunk's own."""
    write_documents(tmp_path / "d.jsonl", kind="sft", count=8, longest=60)
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", steps=1, global_batch=1)
    config.data.validation_samples = 0
    config.trainer.recompute, config.trainer.mlp_chunks = Recompute.full, 4
    config.objective.detection_recompute = DetectionRecompute.none
    in_detection, in_training, _ = on_ranks(forwards, 1, config)[0]
    layers = config.model.num_layers
    assert (in_detection, in_training) == (layers, 3 * 4 * layers)
