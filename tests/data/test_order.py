import numpy as np
import pytest

from nemo_cdt.data.documents import Document
from nemo_cdt.data.order import Shuffled, Subset


class Numbers:
    """Document i is the token i, and claims to have i tokens."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return Document(input_ids=np.array([index]), labels=np.array([index]))

    def length(self, index):
        return index


def numbers(documents):
    return [int(documents[index].input_ids[0]) for index in range(len(documents))]


def test_every_epoch_holds_every_document_once_and_in_another_order():
    seen = numbers(Shuffled(Numbers(20), seed=1, length=60))
    epochs = [seen[:20], seen[20:40], seen[40:]]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3


def test_the_order_is_the_seeds():
    expected = numbers(Shuffled(Numbers(20), seed=1, length=30))
    assert numbers(Shuffled(Numbers(20), seed=1, length=30)) == expected
    assert numbers(Shuffled(Numbers(20), seed=2, length=30)) != expected


def test_a_run_goes_on_at_any_sample_and_in_any_direction():
    expected = numbers(Shuffled(Numbers(7), seed=3, length=21))
    resumed = Shuffled(Numbers(7), seed=3, length=21)
    assert [int(resumed[index].input_ids[0]) for index in range(9, 21)] == expected[9:]
    assert [int(resumed[index].input_ids[0]) for index in reversed(range(21))] == expected[::-1]


def test_a_longer_run_begins_as_a_shorter_one():
    assert numbers(Shuffled(Numbers(7), seed=3, length=21))[:10] == numbers(Shuffled(Numbers(7), seed=3, length=10))


def test_without_shuffling_the_order_is_that_of_the_documents():
    assert numbers(Shuffled(Numbers(3), seed=1, length=7, shuffle=False)) == [0, 1, 2, 0, 1, 2, 0]


def test_indices_end_with_the_length():
    assert len(list(Shuffled(Numbers(3), seed=1, length=4))) == 4
    with pytest.raises(IndexError):
        Shuffled(Numbers(3), seed=1, length=4)[4]


def test_nothing_can_be_drawn_from_nothing():
    with pytest.raises(ValueError, match="no documents"):
        Shuffled(Numbers(0), seed=1, length=1)


def test_a_subset_is_the_documents_at_its_indices():
    assert numbers(Subset(Numbers(9), np.array([4, 2]))) == [4, 2]


@pytest.mark.parametrize(
    "ordered", [Shuffled(Numbers(7), seed=3, length=21), Subset(Numbers(9), np.array([4, 2]))], ids=["order", "subset"]
)
def test_a_length_is_that_of_the_document_at_the_index(ordered):
    assert [ordered.length(index) for index in range(len(ordered))] == numbers(ordered)
