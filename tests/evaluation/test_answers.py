"""Right answers, counted one token at a time."""

import pytest
import torch

from nemo_cdt.evaluation.answers import is_right, wrong_tokens


def test_one_token_that_is_not_the_likeliest_makes_an_answer_wrong():
    logits_RV = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])

    assert is_right(logits_RV, torch.tensor([1, 0]))
    assert not is_right(logits_RV, torch.tensor([1, 2]))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_wrong_tokens_are_those_of_each_row(rows):
    generator = torch.Generator().manual_seed(rows)
    labelled_SB = torch.rand(64, rows, generator=generator) < 0.5
    right_SB = torch.rand(64, rows, generator=generator) < 0.7
    expected = [sum(int(labelled_SB[s, b] and not right_SB[s, b]) for s in range(64)) for b in range(rows)]

    index_N = labelled_SB.flatten().nonzero()[:, 0]
    found = wrong_tokens(right_SB.flatten()[index_N], index_N, rows)

    assert found.tolist() == expected
    assert sum(expected) > 0
