"""What CDT is compared to, and is combined with, equals the independent reference; the tests can tell."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemo_cdt import config as c
from tests import jobs, llama
from tests.ranks import on_ranks
from tests.reference import ReferenceCDT, ReferenceStep, cosine
from tests.runs import VOCABULARY, small_run, write_documents

WEIGHT = 1e-5  # fp32 after steps of up to 2e-4 each
GAMMA = 1.02  # low enough that many weights reach it with random models, which hardly use their context


def objective(name: c.ObjectiveName, **changes: Any) -> c.Objective:
    """Windows short enough for small documents."""
    return c.Objective(**{"name": name, "beta": 1000.0, "window": 16, "internal": 5, "gamma": GAMMA} | changes)


def reference(config: c.Config, weights: dict[str, np.ndarray]) -> ReferenceCDT:
    optim, how = config.optim, config.objective
    return ReferenceCDT(
        llama.hugging_face(config.model, VOCABULARY, weights),
        cosine(optim.lr, optim.min_lr, config.trainer.max_steps),
        beta=how.beta if how.name.denoises else None,
        longce=(how.window, how.internal, how.gamma) if how.name.weighs else None,
        weight_decay=optim.weight_decay,
        clip_grad=optim.clip_grad,
        eps=optim.eps,
    )


def assert_equal(config: c.Config, run: dict[str, Any], documents: list[tuple]) -> list[ReferenceStep]:
    """The run's losses, weights and what it logged are the reference's."""
    expected = reference(config, run["initial"])
    batch, steps = config.trainer.global_batch_size, []
    for index, metrics in enumerate(run["metrics"]):
        steps.append(expected.step(documents[index * batch : (index + 1) * batch]))
        assert metrics["reduced_train_loss"] == pytest.approx(steps[-1].loss, abs=1e-5)
        if config.objective.name.weighs:
            weights = torch.cat(steps[-1].weights)
            assert metrics["weight"] == pytest.approx(weights.mean().item(), abs=1e-5)
            assert metrics["capped_fraction"] == pytest.approx((weights >= GAMMA).float().mean().item())
    found = llama.renamed(config.model, run["final"])
    for name, value in expected.model.state_dict().items():
        np.testing.assert_allclose(found[name], value.detach().numpy(), atol=WEIGHT, err_msg=name)
    return steps


@pytest.mark.parametrize(
    ("name", "kind", "micro_batch"),
    [("longce", "lm", 1), ("longce", "lm", 2), ("longce", "sft", 4), ("cdt_longce", "lm", 1), ("cdt_longce", "lm", 2)],
)
def test_losses_weights_and_model_equal_the_reference(name: str, kind: str, micro_batch: int, tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "d.jsonl", kind=kind, count=20, longest=60, shortest=12)
    how = objective(c.ObjectiveName(name))
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", micro_batch=micro_batch, objective=how)
    steps = assert_equal(config, on_ranks(jobs.train, 1, config)[0], documents)
    weights = torch.cat([weight for step in steps for weight in step.weights])
    for some in (weights < 0.99, weights == 1, weights == GAMMA):
        assert some.any()
