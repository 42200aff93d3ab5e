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
from tests.runs import TINY, settings_of, small_run

VOCABULARY = 512
MODEL = replace(TINY, vocab_size=VOCABULARY, num_layers=4)
LONGPPL = {"context": 256, "window": 64, "alpha": 0.01, "beta": -20.0}  # of random weights: some token is key
DATA = c.Data(name=c.DataName.multihop, seq_length=640, validation_samples=4)
LOSS = 1e-5  # fp32, relative, of a perplexity
SHARE = 2e-3  # of 640 tokens: a score within rounding of the threshold moves one over it


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    on_ranks(jobs.initial, 1, MODEL, VOCABULARY, folder / "hf", folder / "nemo")
    load_tokenizer("byte").save_pretrained(folder / "hf")
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
    losses, right, types, critical_types, key_losses = [], [], [], [], []
    for document in documents:
        tokens, labels = torch.tensor(document.input_ids[:-1]), torch.tensor(document.labels[1:])
        embeddings = llama.get_input_embeddings()(tokens).detach().requires_grad_()
        logits, known = llama(inputs_embeds=embeddings[None]).logits[0], labels != IGNORE
        loss = torch.nn.functional.cross_entropy(logits[known], labels[known], reduction="none")
        (gradient,) = torch.autograd.grad(loss.mean(), embeddings)
        norms = gradient.norm(dim=-1)
        losses += loss.tolist()
        key_losses += loss[key_tokens(llama, torch.tensor(document.input_ids))[1:][known]].tolist()
        right.append(bool((logits[known].argmax(-1) == labels[known]).all()))
        types += document.types[:-1].tolist()
        critical_types += document.types[:-1][(norms >= norms.mean()).numpy()].tolist()
    assert 0 < len(key_losses) < len(losses)
    found = {"val_perplexity": np.exp(np.mean(losses)), "val_accuracy": np.mean(right)}
    found["val_longppl"] = np.exp(np.mean(key_losses))
    for kind in (TokenType.supporting, TokenType.interference):
        found[f"val_critical_{kind.name}"] = np.mean(np.array(critical_types) == kind)
        found[f"val_base_{kind.name}"] = np.mean(np.array(types) == kind)
    return found


def key_tokens(llama: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """LongPPL's definition, a window at a time: bool [n]."""

    def log_probabilities(part: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return llama(part[None]).logits[0, :-1].log_softmax(-1).gather(1, part[1:, None])[:, 0]

    context, window = LONGPPL["context"], LONGPPL["window"]
    full = torch.cat([torch.zeros(1), log_probabilities(ids)])
    short = full.clone()
    for start in range(0, len(ids) - context, window):
        found = log_probabilities(ids[start : start + context + window])[context - 1 :]
        short[start + context : start + context + len(found)] = found
    return (full - short > LONGPPL["alpha"]) & (full > LONGPPL["beta"])


def run(folder: Path, weights: Path, parallel: c.Parallel, ranks: int, **changes: Any) -> c.Config:
    still = c.Optim(lr=1e-20, min_lr=1e-20, weight_decay=0.0)  # what is validated are the initial weights
    init = c.Init(nemo=str(weights / "nemo"))
    config = small_run(folder, folder, steps=1, model=MODEL, data=DATA, init=init, optim=still, parallel=parallel)
    config.trainer.val_interval, config.trainer.devices = 1, ranks
    config.longppl = c.LongPPL(evaluator=str(weights / "hf"), **LONGPPL)
    return replace(config, **changes)


LAYOUTS = {
    "one": (1, c.Parallel()),
    "TP2": (2, c.Parallel(tensor=2)),
    "TP2+SP CP2": (4, c.Parallel(tensor=2, sequence=True, context=2)),
    "PP2 DP2": (4, c.Parallel(pipeline=2)),
    "PP2 interleaved": (2, c.Parallel(pipeline=2, virtual_pipeline=2)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_validation_measures_what_hugging_face_does(layout, weights, documents, expected, tmp_path):
    ranks, parallel = LAYOUTS[layout]

    found = on_ranks(jobs.evaluate, ranks, run(tmp_path / "run", weights, parallel, ranks), documents)

    assert expected["val_accuracy"] == 0.5
    assert abs(expected["val_critical_supporting"] - expected["val_base_supporting"]) > 5 * SHARE  # a mask shows
    for metrics in found:
        assert metrics["val_perplexity"] == pytest.approx(expected["val_perplexity"], rel=LOSS)
        assert metrics["val_longppl"] == pytest.approx(expected["val_longppl"], rel=LOSS)
        assert metrics["val_accuracy"] == 0.5
        for name in (name for name in expected if "critical" in name or "base" in name):
            assert metrics[name] == pytest.approx(expected[name], abs=SHARE), name


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"alpha": 1e3}, "finds no key token among the labelled ones of 4 validation documents"),
        ({"evaluator": "{folder}"}, "longppl.evaluator=.* no Hugging Face tokenizer folder"),
    ],
)
def test_an_evaluator_that_cannot_judge_is_one_line(how, expected, weights, documents, tmp_path):
    config = run(tmp_path / "run", weights, c.Parallel(), 1)
    for name, value in how.items():
        setattr(config.longppl, name, value.format(folder=tmp_path) if isinstance(value, str) else value)

    with pytest.raises(RuntimeError, match=expected):
        on_ranks(jobs.evaluate, 1, config, documents)
    assert not (tmp_path / "run/key_tokens.npz").exists()


def test_the_first_validation_says_where_no_answer_is_what_greedy_decoding_writes(weights, documents, tmp_path):
    none_right = documents[1::2] * 2

    said = {
        name: on_ranks(jobs.said_by_evaluation, 1, run(tmp_path / name, weights, c.Parallel(), 1), some)[0]
        for name, some in (("half", documents), ("none", none_right))
    }

    line = "note: None of the 4 answers of validation is what greedy decoding writes: "
    assert (said["half"].count(line), said["none"].count(line)) == (0, 1)


def test_detection_in_a_validation_moves_nothing(weights, documents, tmp_path):
    """A plain run that validates ends with the very weights of one that does not."""
    plain = settings_of("ce")
    with_, without = (
        run(tmp_path / name, weights, c.Parallel(), 1, objective=plain, optim=c.Optim(lr=1e-3)) for name in "ab"
    )
    with_.trainer.max_steps = without.trainer.max_steps = 2
    without.trainer.val_interval, without.longppl = 0, c.LongPPL()

    first, second = (on_ranks(jobs.train, 1, config)[0] for config in (with_, without))

    assert "val_critical_supporting" in first["metrics"][-1]
    assert "val_critical_supporting" not in second["metrics"][-1]
    for name, weight in first["final"].items():
        np.testing.assert_array_equal(weight, second["final"][name], err_msg=name)
