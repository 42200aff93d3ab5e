from dataclasses import replace

import numpy as np
import pytest
import torch

from nemo_cdt.analysis import attention
from nemo_cdt.analysis.attention_map import Looks, Maps, attention_map, choose_layer, chunk_of, layer_map, uniform
from nemo_cdt.analysis.samples import CRITICAL
from nemo_cdt.analysis.settings import AttentionMap
from nemo_cdt.data.documents import TokenType
from tests.analysis.models import eager, watched
from tests.analysis.test_flow import TOKENS, sample

LAYER, CHUNKS = 1, 7


def expected_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(map, attention of the answer's rows) from whole matrices."""
    with torch.no_grad():
        out = eager(name)(input_ids=torch.as_tensor(sample().input_ids)[None], output_attentions=True)
    mean_NN = out.attentions[LAYER][0].mean(0).double().numpy()
    parts = [np.flatnonzero(np.arange(TOKENS) * CHUNKS // TOKENS == chunk) for chunk in range(CHUNKS)]
    map_CC = np.array([[mean_NN[np.ix_(rows, columns)].sum() / len(rows) for columns in parts] for rows in parts])
    return map_CC, mean_NN[sample().rows].mean(0)


@pytest.mark.parametrize("name", ["llama", "mistral"])
@pytest.mark.parametrize("chunk", [attention.CHUNK, 5 * TOKENS])
def test_a_map_is_that_of_the_whole_matrix(monkeypatch, name, chunk):
    monkeypatch.setattr(attention, "CHUNK", chunk)
    found, _ = layer_map(watched(name), sample(), LAYER, CHUNKS)
    map_CC, answer_N = expected_of(name)

    np.testing.assert_allclose(found.map_CC.numpy(), map_CC, atol=1e-6)
    np.testing.assert_allclose(found.answer_N.numpy(), answer_N, atol=1e-6)
    np.testing.assert_allclose(found.map_CC.sum(1).numpy(), 1, atol=1e-6)


def test_another_layer_is_noticed():
    map_CC, _ = expected_of("llama")

    assert np.abs(layer_map(watched("llama"), sample(), LAYER + 1, CHUNKS)[0].map_CC.numpy() - map_CC).max() > 1e-2


@pytest.mark.parametrize("window", [None, 12])
def test_uniform_attention_is_the_mean_of_what_each_row_sees(window):
    rows_R = torch.as_tensor(sample().rows)
    seen_RN = attention.attended(rows_R, torch.arange(TOKENS), window).double()

    found = uniform(rows_R, TOKENS, window)
    torch.testing.assert_close(found, (seen_RN / seen_RN.sum(1, keepdim=True)).mean(0), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_an_answer_has_its_base_rate_and_is_right_or_wrong(name):
    logits = eager(name)(input_ids=torch.as_tensor(sample().input_ids)[None]).logits[0, sample().rows]
    right = replace(sample(), answer=logits.argmax(-1).numpy())
    (_, wrong), (_, other) = (layer_map(watched(name), one, LAYER, CHUNKS) for one in (sample(), right))

    assert (wrong.correct, other.correct) == (False, True)
    assert sum(wrong.uniform.values()) == pytest.approx(1)
    assert sum(wrong.answer.values()) == pytest.approx(1)
    assert 0 < sum(wrong.uniform[type] for type in CRITICAL) != pytest.approx(wrong.critical)


def looks(correct: bool, supporting: float) -> Looks:
    rest = {type: 0.0 for type in TokenType if type is not TokenType.supporting}
    return Looks(
        answer=rest | {TokenType.supporting: supporting}, uniform=rest | {TokenType.supporting: 0.1}, correct=correct
    )


def test_right_and_wrong_answers_are_apart_beside_the_base_rate():
    maps = [
        Maps(map_CC=np.eye(2), marked_C=np.array([0]), looks=[looks(True, high), looks(False, 0.25)])
        for high in (0.5, 0.75)
    ]
    result = attention_map(*maps, LAYER)

    assert [table.rows[1][1:] for table in result.tables] == [
        ["0.1 (n=2)", "0.375 (n=2)", "0.5 (n=2)"],
        ["0.1 (n=2)", "0.5 (n=1)", "0.75 (n=1)"],
        ["0.1 (n=2)", "0.25 (n=1)", "0.25 (n=1)"],
    ]
    assert ("0.1", "if it were uniform: the base rate") in result.headline
    assert result.numbers["base_rate"]["supporting"]["mean"] == pytest.approx(0.1)
    assert result.numbers["after"]["answer"]["correct"]["supporting"]["mean"] == 0.75


def test_chunks_differ_by_one_token_at_most():
    sizes = torch.bincount(chunk_of(100, 46))

    assert (len(sizes), int(sizes.sum())) == (46, 100)
    assert int(sizes.max() - sizes.min()) <= 1


def test_the_layer_is_the_papers_unless_named():
    assert choose_layer(AttentionMap(), 32) == 24
    assert choose_layer(AttentionMap(layer=0), 32) == 0
    with pytest.raises(ValueError, match=r"attention_map\.layer=32: the model has layers 0 to 31"):
        choose_layer(AttentionMap(layer=32), 32)


def test_a_sample_shorter_than_the_map_is_one_line():
    with pytest.raises(
        ValueError, match=r"the sample has 40 tokens: set attention_map\.chunks to that or less, not 41"
    ):
        layer_map(watched("llama"), sample(), LAYER, TOKENS + 1)
