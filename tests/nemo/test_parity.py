"""CDT through NeMo and Megatron equals the independent reference of :mod:`tests.reference`, and the tests can tell."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel

from nemo_cdt.config import Config
from nemo_cdt.objectives.cdt import Normalization
from tests import jobs, llama
from tests.ranks import on_ranks
from tests.reference import ReferenceCDT, ReferenceStep, cosine
from tests.runs import VOCABULARY, settings_of, small_run, write_documents

DELTA = 1e-6  # fp32, deltas of up to 0.1
WEIGHT = 1e-5  # fp32 after steps of up to 2e-4 each


def reference_steps(
    config: Config, run: dict[str, Any], documents: list[tuple], model: PreTrainedModel
) -> list[ReferenceStep]:
    """The reference's steps with ``model``, the run's initial one, on the run's own batches."""
    optim, objective = config.optim, config.objective
    expected = ReferenceCDT(
        model,
        cosine(optim.lr, optim.min_lr, config.trainer.max_steps),
        beta=getattr(objective, "beta", None),
        longce=None,
        weight_decay=optim.weight_decay,
        clip_grad=optim.clip_grad,
        eps=optim.eps,
        normalization=objective.normalization,
        rho=objective.rho,
    )
    by_tokens = {tuple(ids[:-1].tolist()): (ids, labels) for ids, labels in documents}
    batches = [[d for d in run["detections"] if d["step"] == step] for step in range(config.trainer.max_steps)]
    return [expected.step([by_tokens[tuple(d["tokens"].tolist())] for d in batch]) for batch in batches]


def assert_steps_equal(config: Config, run: dict[str, Any], steps: list[ReferenceStep]) -> None:
    for index, expected in enumerate(steps):
        batch = [d for d in run["detections"] if d["step"] == index]
        assert len(batch) == config.trainer.global_batch_size
        for found, mask, delta in zip(batch, expected.masks, expected.deltas, strict=True):
            assert 0.2 < mask.float().mean() < 1, "a mask that says nothing"
            np.testing.assert_array_equal(found["noise"], mask)
            np.testing.assert_allclose(found["delta"], delta, atol=DELTA)
        assert run["losses"][index] == pytest.approx(expected.loss, abs=1e-5)


def assert_equal(config: Config, run: dict[str, Any], documents: list[tuple]) -> None:
    model = llama.hugging_face(config.model, VOCABULARY, run["initial"])
    assert_steps_equal(config, run, reference_steps(config, run, documents, model))
    weights = llama.renamed(config.model, run["final"])
    for name, expected in model.state_dict().items():
        np.testing.assert_allclose(weights[name], expected.detach().numpy(), atol=WEIGHT, err_msg=name)


@pytest.mark.parametrize(
    ("kind", "micro_batch", "steps"), [("sft", 1, 5), ("sft", 2, 3), ("sft", 4, 3), ("lm", 1, 3), ("lm", 2, 3)]
)
def test_masks_deltas_and_weights_equal_the_reference(kind: str, micro_batch: int, steps: int, tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "d.jsonl", kind=kind, count=40, longest=60)
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", steps=steps, micro_batch=micro_batch)
    assert_equal(config, on_ranks(jobs.train, 1, config)[0], documents)


def test_the_relative_normalization_equals_the_reference(tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "d.jsonl", kind="sft", count=20, longest=60)
    objective = settings_of(normalization=Normalization.relative, rho=0.1)
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", steps=1, objective=objective)
    assert_equal(config, on_ranks(jobs.train, 1, config)[0], documents)


@pytest.mark.parametrize(
    "mutation",
    ["sign_flipped", "mask_inverted", "freezing_forgotten", "divided_by_num_microbatches", "padding_counted"],
)
def test_a_mutation_is_noticed(mutation: str, tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "d.jsonl", kind="sft", count=20, longest=60)
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", steps=1)
    run = on_ranks(jobs.train, 1, config, mutation)[0]
    with pytest.raises(AssertionError, match=r"not equal|Not equal"):
        assert_equal(config, run, documents)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents") / "d.jsonl"
    write_documents(path, kind="sft", count=20, longest=60)
    return path


def test_beta_zero_is_plain_training_bit_for_bit(documents: Path, tmp_path: Path) -> None:
    cdt = on_ranks(jobs.train, 1, small_run(tmp_path / "cdt", documents, beta=0.0))[0]
    expected = on_ranks(jobs.train, 1, small_run(tmp_path / "ce", documents, name="ce"))[0]
    assert cdt["detections"]
    assert not expected["detections"]
    for name, weight in expected["final"].items():
        np.testing.assert_array_equal(cdt["final"][name], weight, err_msg=name)


def test_detection_leaves_no_weight_gradient(documents: Path, tmp_path: Path) -> None:
    run = on_ranks(jobs.train, 1, small_run(tmp_path / "run", documents))[0]
    assert run["weight_gradients_after_detection"] == [0.0] * 3


def test_a_delta_is_a_descent_step(documents: Path, tmp_path: Path) -> None:
    config = small_run(tmp_path / "run", documents, global_batch=1, beta=500.0)
    metrics = on_ranks(jobs.train, 1, config)[0]["metrics"]
    assert all(step["reduced_train_loss"] < step["detection_loss"] for step in metrics)
