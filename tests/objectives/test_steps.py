"""What CDT is compared to, and is combined with, equals the independent reference; the tests can tell."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemo_cdt import config as c
from nemo_cdt.objectives import Settings, objective_of
from nemo_cdt.objectives.longce.objective import LongCESettings
from tests import jobs, llama
from tests.nemo.test_layouts import BALANCED, LAYOUTS, MODEL, Layout
from tests.ranks import on_ranks
from tests.reference import ReferenceCDT, ReferenceStep, cosine
from tests.runs import VOCABULARY, settings_of, small_run, write_documents

WEIGHT = 1e-5  # fp32 after steps of up to 2e-4 each
GAMMA = 1.02  # low enough that many weights reach it with random models, which hardly use their context


def objective(name: str, **changes: Any) -> Settings:
    """Windows short enough for small documents."""
    return settings_of(name, **{"beta": 1000.0, "window": 16, "stride": 5, "gamma": GAMMA} | changes)


def reference(config: c.Config, weights: dict[str, np.ndarray]) -> ReferenceCDT:
    optim, how = config.optim, config.objective
    return ReferenceCDT(
        llama.hugging_face(config.model, VOCABULARY, weights),
        cosine(optim.lr, optim.min_lr, config.trainer.max_steps),
        beta=how.beta if objective_of(config).detects else None,
        longce=(how.window, how.stride, how.gamma) if isinstance(how, LongCESettings) else None,
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
        assert metrics["grad_norm"] == pytest.approx(expected.grad_norm, rel=1e-4)
        if isinstance(config.objective, LongCESettings):
            weights = torch.cat(steps[-1].weights)
            assert metrics["weight"] == pytest.approx(weights.mean().item(), abs=1e-5)
            assert metrics["capped_fraction"] == pytest.approx((weights >= GAMMA).float().mean().item())
    found = llama.renamed(config.model, run["final"])
    for name, value in expected.model.state_dict().items():
        np.testing.assert_allclose(found[name], value.detach().numpy(), atol=WEIGHT, err_msg=name)
    return steps


@pytest.mark.parametrize(
    ("name", "kind", "micro_batch"),
    [("longce", "lm", 1), ("longce", "sft", 4), ("cdt_longce", "lm", 2)],
)
def test_losses_weights_and_model_equal_the_reference(name: str, kind: str, micro_batch: int, tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "d.jsonl", kind=kind, count=20, longest=60, shortest=12)
    how = objective(name)
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", micro_batch=micro_batch, objective=how)
    steps = assert_equal(config, on_ranks(jobs.train, 1, config)[0], documents)
    weights = torch.cat([weight for step in steps for weight in step.weights])
    for some in (weights < 0.99, weights == 1, weights == GAMMA):
        assert some.any()


def test_cross_entropy_of_answers_equals_the_reference(tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "d.jsonl", kind="sft", count=12, longest=60)
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", name="sft")
    assert_equal(config, on_ranks(jobs.train, 1, config)[0], documents)


MUTATIONS = {
    "weights_not_clamped": "longce",
    "weights_renormalised": "longce",
    "window_begins_one_late": "longce",
    "weights_with_a_gradient": "longce",
    "weights_in_detection": "cdt_longce",
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_is_noticed(mutation: str, tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "d.jsonl", kind="lm", count=4, longest=60)
    how = objective(MUTATIONS[mutation])
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", steps=1, objective=how)
    run = on_ranks(jobs.train, 1, config, mutation)[0]
    with pytest.raises(AssertionError):
        assert_equal(config, run, documents)


@dataclass
class Shared:
    """What all layouts start from: documents of uneven length."""

    folder: Path

    def run(
        self, name: str, layout: Layout, *, packing: c.Packing | None = None, mutate: str | None = None
    ) -> list[dict[str, Any]]:
        config = small_run(
            self.folder / str(len(list(self.folder.iterdir()))),
            self.folder / "d.jsonl",
            global_batch=8,
            model=MODEL,
            parallel=layout.parallel,
            objective=objective(name),
            init=c.Init(nemo=str(self.folder / "nemo")),
        )
        config.trainer = replace(config.trainer, devices=layout.ranks, **layout.trainer)
        if packing:  # documents of 44 to 60 tokens: those of 8 rows in 4
            length = {c.Packing.sequential: 128, c.Packing.balanced: BALANCED}[packing]
            config.data = replace(config.data, pack=True, packing=packing, seq_length=length, document_length=64)
            config.trainer.global_batch_size = 4
        return on_ranks(jobs.train_and_read, layout.ranks, config, mutate)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    folder = tmp_path_factory.mktemp("objectives")
    write_documents(folder / "d.jsonl", kind="lm", count=24, longest=60, shortest=44)
    on_ranks(jobs.initial, 1, MODEL, VOCABULARY, folder / "hf", folder / "nemo")
    return Shared(folder)


@pytest.fixture(scope="module")
def of_one_process(shared: Shared) -> dict[str, dict[str, Any]]:
    return {name: shared.run(name, Layout(1))[0] for name in ("longce", "cdt_longce")}


LOGGED = ("weight", "capped_fraction", "measured_fraction", "weighted_loss", "grad_norm")


def assert_same(ranks: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    for name in LOGGED:
        values = [metrics[name] for metrics in expected["metrics"]]
        for rank in ranks:
            found = [metrics[name] for metrics in rank["metrics"]]
            np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-5, err_msg=name)
    last = next(rank for rank in ranks if rank["losses"][0] > 0)
    np.testing.assert_allclose(last["losses"], expected["losses"], atol=1e-5)
    for name, value in expected["state"].items():
        np.testing.assert_allclose(ranks[0]["state"][name], value, atol=WEIGHT, err_msg=name)


@pytest.mark.parametrize(
    ("name", "layout", "packing"),
    [
        ("longce", "CP2", None),
        ("longce", "TP2+SP", None),
        ("longce", "DP2 overlapped", None),
        ("longce", "PP2", c.Packing.sequential),
        ("longce", "PP2", c.Packing.balanced),
        ("longce", "DP2", c.Packing.balanced),
        ("longce", "full recompute", None),
        ("cdt_longce", "PP2 interleaved", None),
        ("cdt_longce", "CP2", c.Packing.sequential),
        ("cdt_longce", "CP2", c.Packing.balanced),
    ],
)
def test_a_layout_gives_the_answer_of_one_process(
    name: str, layout: str, packing: c.Packing | None, shared: Shared, of_one_process: dict[str, dict[str, Any]]
) -> None:
    assert_same(shared.run(name, LAYOUTS[layout], packing=packing), of_one_process[name])


@pytest.mark.parametrize(
    ("mutation", "layout", "packing"),
    [("windows_of_one_rank", "CP2", None), ("windows_across_documents", "PP2", c.Packing.sequential)],
)
def test_a_mutated_layout_is_noticed(
    mutation: str, layout: str, packing: c.Packing | None, shared: Shared, of_one_process: dict[str, dict[str, Any]]
) -> None:
    ranks = shared.run("longce", LAYOUTS[layout], packing=packing, mutate=mutation)
    with pytest.raises(AssertionError):
        assert_same(ranks, of_one_process["longce"])
