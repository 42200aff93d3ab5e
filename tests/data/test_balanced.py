import numpy as np
import pytest

from nemo_cdt.config import FP8, Config, Data, Packing, Parallel, Trainer
from nemo_cdt.cost.steptime import document_cost
from nemo_cdt.data.balanced import BalancedSteps, deal
from nemo_cdt.data.order import Shuffled
from nemo_cdt.data.rows import PackedRows
from tests.data.test_rows import Listed, document

LENGTH = 131072


def alignment_lengths(count: int) -> list[int]:
    """As the alignment set's: seven of eight uniform from 16K to 128K tokens, one about 16K."""
    rng = np.random.default_rng(0)
    short = rng.random(count) < 1 / 8
    drawn = np.where(short, rng.normal(16384, 1500, count).clip(8192, 20000), rng.uniform(16384, LENGTH, count))
    return [int(length) for length in drawn]


class Lengths:
    """Documents of which nobody reads more than their lengths."""

    truncated = (0, 0)

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> None:
        raise AssertionError("read")

    def length(self, index: int) -> int:
        return self.lengths[index] + 1


def cost(positions: int) -> float:
    """Of Llama 3.1 8B at these lengths, roughly: at 128K attention costs 4.6 times what the rest does."""
    return positions * (1 + 4.6 * positions / LENGTH)


@pytest.fixture(scope="module")
def steps() -> BalancedSteps:
    return BalancedSteps(Lengths(alignment_lengths(1200)), LENGTH, steps=20, rows=16, cost=cost)


@pytest.mark.parametrize("ranks", [1, 2, 8, 16])
def test_each_document_is_at_one_place_and_no_row_too_long(steps: BalancedSteps, ranks: int) -> None:
    for step in range(len(steps)):
        dealt = steps.dealt(step, ranks)
        members = sorted(member for rows in dealt for row in rows for member in row)
        assert members == list(range(steps.first[step], steps.first[step + 1]))
        assert all(sum(steps.lengths[member] for member in row) <= LENGTH for rows in dealt for row in rows)
        assert len({len(rows) for rows in dealt}) == 1


def test_a_step_is_as_full_as_whole_documents_in_their_order_make_it(steps: BalancedSteps) -> None:
    for first, end in zip(steps.first, steps.first[1:], strict=False):
        used = sum(steps.lengths[first:end])
        assert used <= 16 * LENGTH
        assert end == len(steps.lengths) or used + steps.lengths[end] > 16 * LENGTH


@pytest.mark.parametrize(("ranks", "rows", "most"), [(2, 16, 0.01), (8, 16, 0.05), (32, 64, 0.1)])
def test_ranks_wait_little_for_one_another(ranks: int, rows: int, most: float) -> None:
    lengths = Lengths(alignment_lengths(3000))
    balanced = BalancedSteps(lengths, LENGTH, steps=20, rows=rows, cost=cost)
    idle = np.mean([balanced.idle(step, ranks) for step in range(20)])

    sequential = PackedRows(lengths, LENGTH, count=20 * rows)
    of_row = [
        sum(cost(lengths.lengths[member]) for member in range(first, end))
        for first, end in zip(sequential.first, sequential.first[1:], strict=False)
    ]
    of_rank = np.reshape(of_row, (20, -1, ranks)).sum(axis=1)
    before = np.mean(1 - of_rank.mean(axis=1) / of_rank.max(axis=1))
    assert idle < most < before or (ranks == 2 and idle < most)


def test_rows_end_with_their_last_document_and_alignment_is_the_only_padding() -> None:
    documents = Listed(document(length, labelled=1, first=100 * i) for i, length in enumerate([6, 4, 12, 4, 4, 9]))
    balanced = BalancedSteps(documents, 16, steps=1, rows=2, cost=float, multiple=4, row_multiple=8)
    assert balanced.first == [0, 5]
    batches = balanced.batches(0, 0, 1)
    lengths = sorted(len(row["tokens"]) for row in batches)
    assert lengths == [16, 16]
    tokens = sorted(int(token) for row in batches for token in row["tokens"][row["documents"] >= 0])
    assert tokens == sorted(int(token) for each in documents[:5] for token in each.input_ids[:-1])


def test_a_rank_without_documents_for_a_micro_batch_has_an_empty_one() -> None:
    documents = Listed(document(length + 1, labelled=1) for length in [60, 31, 31, 60])
    balanced = BalancedSteps(documents, 61, steps=1, rows=2, cost=cost, row_multiple=1)
    assert balanced.dealt(0, 2) == [[[0], []], [[1], [2]]]
    _, empty = balanced.batches(0, 0, 2)
    assert empty["loss_mask"].sum() == 0
    assert (empty["documents"] == -1).all()
    assert len(balanced.dealt(0, 2, multiple_of=4)[1]) == 4


def test_epochs_follow_each_other_without_a_gap() -> None:
    documents = Listed(document(length + 1, labelled=1) for length in [5, 3, 4, 2, 5])
    balanced = BalancedSteps(Shuffled(documents, seed=3, length=2**40), 8, steps=12, rows=1, cost=float)
    order = Shuffled(documents, seed=3, length=2**40)
    assert balanced.lengths == [order.length(index) - 1 for index in range(balanced.first[-1])]


def test_too_few_documents_are_one_line() -> None:
    with pytest.raises(ValueError, match="2 documents fill 0 of the 5 steps"):
        BalancedSteps(Listed([document(3, 1), document(3, 1)]), 8, steps=5, rows=4, cost=float)


def test_the_costliest_is_dealt_first() -> None:
    assert deal([1, 5, 2, 3, 3], 2) == [[1, 2], [3, 4, 0]]


@pytest.mark.parametrize(
    ("parallel", "fp8", "document", "row"),
    [
        (Parallel(), FP8.none, 1, 1),
        (Parallel(context=2), FP8.none, 4, 4),
        (Parallel(tensor=2, sequence=True, context=4), FP8.none, 8, 16),
        (Parallel(tensor=2), FP8.none, 1, 1),
        (Parallel(tensor=2, sequence=True, context=2), FP8.both, 4, 64),
    ],
)
def test_documents_and_rows_can_be_split(parallel: Parallel, fp8: FP8, document: int, row: int) -> None:
    config = Config(name="n", output="o", parallel=parallel, trainer=Trainer(fp8=fp8))
    assert (config.document_multiple, config.row_multiple) == (document, row)


def test_attention_makes_one_long_document_dearer_than_two_short_ones() -> None:
    config = Config(name="n", output="o", data=Data(pack=True, packing=Packing.balanced))
    assert document_cost(config, 2000) > 2 * document_cost(config, 1000)
