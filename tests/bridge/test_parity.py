"""A run on Megatron-Bridge gives the figures and the weights of the independent reference, however it is split."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nemo_cdt import config as c
from tests import llama
from tests.bridge import jobs
from tests.ranks import on_ranks
from tests.reference import ReferenceCDT, cosine
from tests.runs import TINY, VOCABULARY, small_run, write_documents

LOSS = 1e-6  # fp32, relative
WEIGHT = 1e-5  # fp32 after three steps of up to 2e-4 each
MODEL = replace(TINY, num_layers=4)


@dataclass
class Case:
    ranks: int = 1
    parallel: c.Parallel = field(default_factory=c.Parallel)
    trainer: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    objective: str = "cdt"


SEQUENTIAL = {"pack": True, "packing": c.Packing.sequential, "seq_length": 128, "document_length": 64}
BALANCED = {"pack": True, "seq_length": 112, "document_length": 64}  # as in tests/nemo/test_layouts.py
CASES = {
    "one process": Case(),
    "plain cross-entropy": Case(objective="ce"),
    "DP2": Case(2),
    "DP2 overlapped": Case(2, c.Parallel(overlap_grad_reduce=True, overlap_param_gather=True)),
    "TP2+SP": Case(2, c.Parallel(tensor=2, sequence=True)),
    "CP2": Case(2, c.Parallel(context=2)),
    "PP2": Case(2, c.Parallel(pipeline=2)),
    "PP2 interleaved": Case(2, c.Parallel(pipeline=2, virtual_pipeline=2)),
    "TP2+SP CP2": Case(4, c.Parallel(tensor=2, sequence=True, context=2)),
    "full recompute, MLP in 3 chunks": Case(trainer={"recompute": c.Recompute.full, "mlp_chunks": 3}),
    "packed, CP2": Case(2, c.Parallel(context=2), data=SEQUENTIAL),
    "packed, PP2": Case(2, c.Parallel(pipeline=2), data=SEQUENTIAL),
    "dealt": Case(data=BALANCED),
    "dealt, DP2 overlapped": Case(2, c.Parallel(overlap_grad_reduce=True, overlap_param_gather=True), data=BALANCED),
    "dealt, PP2 interleaved": Case(2, c.Parallel(pipeline=2, virtual_pipeline=2), data=BALANCED),
}


@dataclass
class Shared:
    folder: Path
    documents: list[tuple]

    def config(self, name: str, case: Case) -> c.Config:
        output = self.folder / name.replace(" ", "_").replace(",", "")
        config = small_run(output, self.folder / "d.jsonl", global_batch=8, name=case.objective)
        config.model, config.parallel = MODEL, case.parallel
        config.init.hf, config.export.hf = str(self.folder / "hf"), str(output / "hf")
        config.trainer = replace(config.trainer, devices=case.ranks, **case.trainer)
        if case.data:
            config.data = replace(config.data, **case.data)
            config.trainer.global_batch_size = 4
        return config


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    folder = tmp_path_factory.mktemp("bridge")
    documents = write_documents(folder / "d.jsonl", kind="sft", count=60, shortest=44, longest=60, seed=1)
    llama.random_hugging_face(MODEL, VOCABULARY).save_pretrained(folder / "hf")
    return Shared(folder, documents)


@pytest.fixture(scope="module")
def references(shared: Shared) -> dict[str, tuple[list[Any], dict[str, np.ndarray]]]:
    """Of each objective its steps, and the weights after them."""
    found = {}
    for objective, beta in (("cdt", 1000.0), ("ce", None)):
        config, model = shared.config("reference", Case()), llama.loaded(shared.folder / "hf")
        optim = config.optim
        expected = ReferenceCDT(
            model,
            cosine(optim.lr, optim.min_lr, config.trainer.max_steps),
            beta=beta,
            weight_decay=optim.weight_decay,
            clip_grad=optim.clip_grad,
            eps=optim.eps,
        )
        steps = [expected.step(shared.documents[first : first + 8]) for first in (0, 8, 16)]
        found[objective] = steps, {name: w.detach().numpy().copy() for name, w in model.state_dict().items()}
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_run_gives_the_answer_of_the_reference(name: str, shared: Shared, references: Any) -> None:
    case = CASES[name]
    config = shared.config(name, case)
    ranks = on_ranks(jobs.train, case.ranks, config)

    steps, weights = references[case.objective]
    losses = [row["loss"] for row in ranks[0]["metrics"]]
    assert losses == pytest.approx([step.loss for step in steps], rel=LOSS)
    exported = load_file(Path(config.export.hf, "model.safetensors"))
    for key, tensor in exported.items():
        np.testing.assert_allclose(tensor.numpy(), weights[key], atol=WEIGHT, err_msg=key)
    if case.objective == "cdt":
        shares = [torch.cat([mask.flatten() for mask in step.masks]).double().mean().item() for step in steps]
        assert [row["noise_fraction"] for row in ranks[0]["metrics"]] == pytest.approx(shares, abs=1e-9)


def test_the_objectives_are_told_apart(references: Any) -> None:
    (_, one), (_, other) = references["cdt"], references["ce"]
    assert max(np.abs(one[name] - other[name]).max() for name in one) > 10 * WEIGHT
