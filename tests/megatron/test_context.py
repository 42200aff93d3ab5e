import pytest
import torch

from nemo_cdt.megatron.context import document_of, row_positions


def test_a_row_is_cut_into_chunks_that_pair_the_first_with_the_last() -> None:
    assert row_positions([0, 8], cp_size=2, cp_rank=0).tolist() == [0, 1, 6, 7]
    assert row_positions([0, 8], cp_size=2, cp_rank=1).tolist() == [2, 3, 4, 5]


def test_each_packed_document_is_cut_by_itself_and_ranks_share_all_positions() -> None:
    ranks = [row_positions([0, 4, 12], cp_size=2, cp_rank=rank).tolist() for rank in (0, 1)]
    assert ranks[0] == [0, 3, 4, 5, 10, 11]
    assert sorted(ranks[0] + ranks[1]) == list(range(12))


def test_a_document_that_does_not_divide_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"6 positions cannot be cut in 2 \* parallel.context = 4 chunks"):
        row_positions([0, 6], cp_size=2, cp_rank=0)


def test_positions_know_their_document() -> None:
    assert document_of(torch.tensor([0, 3, 4, 11]), torch.tensor([0, 4, 12])).tolist() == [0, 0, 1, 1]
