"""What a validation logs equals an independent computation with Hugging Face's Llama, under every kind of layout."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from nemo_cdt import config as c
from nemo_cdt.data.documents import IGNORE, Document, TokenType
from nemo_cdt.data.split import load_documents
from nemo_cdt.data.tokenizer import load_tokenizer
from tests import jobs
from tests.ranks import on_ranks
from tests.runs import TINY, small_run

VOCABULARY = 512
MODEL = replace(TINY, vocab_size=VOCABULARY)
DATA = c.Data(name=c.DataName.multihop, seq_length=640, validation_samples=4)
LOSS = 1e-5  # fp32, relative, of a perplexity
SHARE = 2e-3  # of 640 tokens: a score within rounding of the threshold moves one over it


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    on_ranks(jobs.initial, 1, MODEL, VOCABULARY, folder / "hf", folder / "nemo")
    return folder


@pytest.fixture(scope="module")
def llama(weights: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(weights / "hf", attn_implementation="eager")


@pytest.fixture(scope="module")
def documents(llama: LlamaForCausalLM) -> list[Document]:
    """The data's own, of which every second one has the one answer that this random model would give."""
    _, found = load_documents(DATA, load_tokenizer("byte"), seed=42, max_documents=1, vocab_size=VOCABULARY)
    made = [found[i] for i in range(4)]
    for document in made[::2]:
        (last,) = np.flatnonzero(document.labels != IGNORE)[-1:]
        with torch.no_grad():
            logits = llama(torch.tensor(document.input_ids[None, :last])).logits[0, -1]
        document.labels[:] = IGNORE
        document.labels[last] = logits.argmax().item()
    return made


@pytest.fixture(scope="module")
def expected(llama: LlamaForCausalLM, documents: list[Document]) -> dict[str, float]:
    losses, right, types, critical_types = [], [], [], []
    for document in documents:
        tokens, labels = torch.tensor(document.input_ids[:-1]), torch.tensor(document.labels[1:])
        embeddings = llama.get_input_embeddings()(tokens).detach().requires_grad_()
        logits, known = llama(inputs_embeds=embeddings[None]).logits[0], labels != IGNORE
        loss = torch.nn.functional.cross_entropy(logits[known], labels[known], reduction="none")
        (gradient,) = torch.autograd.grad(loss.mean(), embeddings)
        norms = gradient.norm(dim=-1)
        losses += loss.tolist()
        right.append(bool((logits[known].argmax(-1) == labels[known]).all()))
        types += document.types[:-1].tolist()
        critical_types += document.types[:-1][(norms >= norms.mean()).numpy()].tolist()
    found = {"val_perplexity": np.exp(np.mean(losses)), "val_accuracy": np.mean(right)}
    for kind in (TokenType.supporting, TokenType.interference):
        found[f"val_critical_{kind.name}"] = np.mean(np.array(critical_types) == kind)
        found[f"val_base_{kind.name}"] = np.mean(np.array(types) == kind)
    return found


def run(folder: Path, weights: Path, parallel: c.Parallel, ranks: int, **changes: Any) -> c.Config:
    still = c.Optim(lr=1e-20, min_lr=1e-20, weight_decay=0.0)  # what is validated are the initial weights
    init = c.Init(nemo=str(weights / "nemo"))
    config = small_run(folder, folder, steps=1, model=MODEL, data=DATA, init=init, optim=still, parallel=parallel)
    config.trainer.val_interval, config.trainer.devices = 1, ranks
    return replace(config, **changes)


LAYOUTS = {
    "one": (1, c.Parallel()),
    "TP2": (2, c.Parallel(tensor=2)),
    "TP2+SP CP2": (4, c.Parallel(tensor=2, sequence=True, context=2)),
    "PP2 DP2": (4, c.Parallel(pipeline=2)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_validation_measures_what_hugging_face_does(layout, weights, documents, expected, tmp_path):
    ranks, parallel = LAYOUTS[layout]

    found = on_ranks(jobs.evaluate, ranks, run(tmp_path / "run", weights, parallel, ranks), documents)

    assert expected["val_accuracy"] == 0.5
    assert abs(expected["val_critical_supporting"] - expected["val_base_supporting"]) > 5 * SHARE  # a mask shows
    for metrics in found:
        assert metrics["val_perplexity"] == pytest.approx(expected["val_perplexity"], rel=LOSS)
        assert metrics["val_accuracy"] == 0.5
        for name in (name for name in expected if "critical" in name or "base" in name):
            assert metrics[name] == pytest.approx(expected[name], abs=SHARE), name


def test_detection_in_a_validation_moves_nothing(weights, documents, tmp_path):
    """A plain run that validates ends with the very weights of one that does not."""
    plain = c.Objective(name=c.ObjectiveName.ce)
    with_, without = (
        run(tmp_path / name, weights, c.Parallel(), 1, objective=plain, optim=c.Optim(lr=1e-3)) for name in "ab"
    )
    with_.trainer.max_steps = without.trainer.max_steps = 2
    without.trainer.val_interval = 0

    first, second = (on_ranks(jobs.train, 1, config)[0] for config in (with_, without))

    assert "val_critical_supporting" in first["metrics"][-1]
    assert "val_critical_supporting" not in second["metrics"][-1]
    for name, weight in first["final"].items():
        np.testing.assert_array_equal(weight, second["final"][name], err_msg=name)
