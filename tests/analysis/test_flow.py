"""Information flow, attention and retrieval from the answer's rows against whole attention matrices and autograd."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from nemo_cdt.analysis import attention, flow
from nemo_cdt.analysis.observe import observe
from nemo_cdt.analysis.samples import Sample
from nemo_cdt.data.documents import TokenType
from tests.analysis.models import CONFIGS, VOCABULARY, textbook, watched

TOKENS, TOP_K = 40, 5


def sample(tokens: int = TOKENS, rows=(20, 38, 39)) -> Sample:
    rng = np.random.default_rng(1)
    return Sample(
        where="the sample",
        input_ids=rng.integers(VOCABULARY, size=tokens),
        types=rng.integers(5, size=tokens),
        rows=np.array(rows),
        answer=rng.integers(VOCABULARY, size=len(rows)),
    )


def expected_of(name: str):
    return textbook(name, *(torch.as_tensor(values) for values in (sample().input_ids, sample().rows, sample().answer)))


def by_type(values_LHN: torch.Tensor) -> np.ndarray:
    """Mean over each type's tokens, [L, H, T]; nan where there are none."""
    types = torch.as_tensor(sample().types)
    return torch.stack([values_LHN[..., types == type].mean(-1) for type in TokenType], dim=-1).numpy()


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.nanmax(np.abs(found - expected)) / np.nanmax(np.abs(expected)))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that windows are attended to in several parts."""
    monkeypatch.setattr(attention, "BLOCK", 1)


@pytest.fixture(params=CONFIGS)
def both(request):
    """(What was observed and its gradient, the textbook's) for an architecture."""
    return *observe(watched(request.param), sample(), TOP_K), *expected_of(request.param)


def test_the_score_is_that_of_whole_attention_matrices(both):
    found, _, attention_LHRN, slope_LHRN, *_ = both
    expected = attention_LHRN * slope_LHRN.abs()

    assert relative(found.ig_N, expected.sum(2).mean((0, 1)).numpy()) < 1e-5  # fp32
    assert relative(found.ig_LHT, by_type(expected.sum(2))) < 1e-5
    assert relative(found.attention_N, attention_LHRN.mean((0, 1, 2)).numpy()) < 1e-5
    assert relative(found.attention_LHT, by_type(attention_LHRN.mean(2))) < 1e-5


def test_loss_and_embedding_gradient_are_those_of_autograd(both):
    found, grad_ND, *_, expected_ND, loss = both

    assert found.loss == pytest.approx(loss.item(), rel=1e-5)
    assert relative(grad_ND.numpy(), expected_ND.numpy()) < 1e-5
    assert relative(found.gradient_N, expected_ND.norm(dim=-1).numpy()) < 1e-5


def test_retrieval_counts_the_top_of_each_row(both):
    found, _, attention_LHRN, *_ = both
    types = sample().types
    expected = np.zeros(found.fr_LHT.shape)
    for layer, head, row in np.ndindex(attention_LHRN.shape[:3]):
        top = np.argsort(-attention_LHRN[layer, head, row].numpy(), kind="stable")[:TOP_K]
        for type in set(types):
            expected[layer, head, type] += np.isin(np.flatnonzero(types == type), top).mean() / len(sample().rows)

    np.testing.assert_allclose(found.fr_LHT[..., :-1], expected[..., :-1])
    assert np.isnan(found.fr_LHT[..., TokenType.answer]).all()


def test_another_score_is_noticed():
    found, _ = observe(watched("llama"), sample(), TOP_K)
    attention_LHRN, slope_LHRN, *_ = expected_of("llama")
    flow_LHRN = attention_LHRN * slope_LHRN
    wrong = {
        "heads summed before the absolute value": flow_LHRN.sum(1, keepdim=True).abs().sum(2) / flow_LHRN.shape[1],
        "no absolute value": flow_LHRN.sum(2),
        "a mean over the answer": flow_LHRN.abs().mean(2),
    }

    for name, wrong_LHN in wrong.items():
        assert relative(found.ig_N, wrong_LHN.mean((0, 1)).numpy()) > 1e-2, name


def swapped_groups(call, rows):
    chunks = list(original_chunks(call, rows))
    groups = call.key.shape[0]
    return [((group + 1) % groups, heads, part) for group, heads, part in chunks]


original_chunks, original_rows = attention.head_chunks, attention.attention_rows

MUTATIONS = {
    "scaling dropped": ("attention_rows", lambda q, k, at, scaling, window: original_rows(q, k, at, 1.0, window)),
    "window ignored": ("attention_rows", lambda q, k, at, scaling, window: original_rows(q, k, at, scaling, None)),
    "groups mixed up": ("head_chunks", swapped_groups),
}


@pytest.mark.parametrize(("mutation", "name"), list(zip(MUTATIONS, ["llama", "mistral", "llama"], strict=True)))
def test_a_mutated_attention_is_noticed(monkeypatch, mutation, name):
    monkeypatch.setattr(flow, *MUTATIONS[mutation])
    found, _ = observe(watched(name), sample(), TOP_K)
    attention_LHRN, slope_LHRN, *_ = expected_of(name)
    expected = (attention_LHRN * slope_LHRN.abs()).sum(2).mean((0, 1)).numpy()

    assert relative(found.ig_N, expected) > 1e-2


def test_small_chunks_give_the_same(monkeypatch):
    expected, _ = observe(watched("llama"), sample(), TOP_K)
    monkeypatch.setattr(attention, "CHUNK", 3 * TOKENS)  # one row of three heads at a time
    found, _ = observe(watched("llama"), sample(), TOP_K)

    np.testing.assert_allclose(found.ig_N, expected.ig_N, rtol=1e-6)
    np.testing.assert_allclose(found.fr_LHT, expected.fr_LHT)


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that any operation makes, forward or backward."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        sizes = [tensor.numel() for tensor in tree_iter(out) if isinstance(tensor, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_no_tensor_is_as_large_as_an_attention_matrix(monkeypatch, name):
    monkeypatch.setattr(attention, "BLOCK", 64)
    tokens = 512
    with Largest() as largest:
        observe(watched(name), sample(tokens, rows=(tokens - 2, tokens - 1)), TOP_K)

    assert tokens * 64 <= largest.elements < tokens**2 / 4  # the MLP is 64 wide


def test_an_answer_is_correct_where_greedy_decoding_writes_it():
    analyzed, prompt = watched("mistral"), sample().input_ids
    analyzed.model.gradient_checkpointing_disable()  # which turns the cache of a generation off
    written = analyzed.model.generate(
        torch.as_tensor(prompt)[None], max_new_tokens=6, do_sample=False, use_cache=True, pad_token_id=0
    )[0].numpy()
    rows = np.arange(len(prompt) - 1, len(written) - 1)
    one = Sample(
        where="", input_ids=written[:-1], types=np.zeros(len(written) - 1, int), rows=rows, answer=written[rows + 1]
    )
    other = Sample(where="", input_ids=one.input_ids, types=one.types, rows=rows, answer=one.answer.copy())
    other.answer[-1] += 1

    assert len(rows) == 6
    assert observe(analyzed, one, TOP_K)[0].correct
    assert not observe(analyzed, other, TOP_K)[0].correct


def test_a_loss_that_is_no_number_is_one_line():
    analyzed = watched("llama")
    with torch.no_grad():
        analyzed.model.lm_head.weight.fill_(float("nan"))

    with pytest.raises(ValueError, match=r"the sample: the loss of its answer is nan in torch.float32: set dtype=fp32"):
        observe(analyzed, sample(), TOP_K)
