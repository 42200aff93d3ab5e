"""Packed rows without padding: the documents of a step, dealt to ranks and micro-batches so that each costs the same.

A step takes as many documents, in their order, as its rows have positions. Which they are depends on no layout; who
trains on which does, and that changes nothing but rounding, as every label of a step weighs the same.
"""

from collections.abc import Callable, Sequence

from nemo_cdt.data.documents import Documents
from nemo_cdt.data.rows import Row, aligned, row

Dealt = list[list[list[int]]]
"""Of each rank the micro-batches of a step, of each of these its documents."""


class BalancedSteps:
    """``steps`` steps of at most ``rows * seq_length`` positions, padding of alignment aside.

    Asks every document it needs for its length, once. No row is longer than ``seq_length``, and each ends with its last
    document.

    Args:
        documents: in the run's order.
        seq_length: the most positions of a row.
        steps: of the run.
        rows: of a step, were each full.
        cost: of a document of so many positions, in any unit.
        multiple: each document is padded to a multiple of it, 2 * context-parallel size where that is above 1.
        row_multiple: so is each row; a multiple of ``multiple``, and ``seq_length`` one of it.

    Raises:
        ValueError: where the documents end before the steps do.
    """

    def __init__(
        self,
        documents: Documents,
        seq_length: int,
        *,
        steps: int,
        rows: int,
        cost: Callable[[int], float],
        multiple: int = 1,
        row_multiple: int = 1,
    ) -> None:
        self.documents = documents
        self.seq_length = seq_length
        self.cost = cost
        self.multiple = multiple
        self.row_multiple = row_multiple
        self.first = [0]  # of each step, and one past the last step
        self.lengths: list[int] = []  # of each document, in positions
        room = rows * seq_length
        left = room
        while len(self.first) <= steps:
            if len(self.lengths) == len(documents):
                raise ValueError(f"{len(documents)} documents fill {len(self.first) - 1} of the {steps} steps")
            length = documents.length(len(self.lengths)) - 1
            if length > left:
                self.first.append(len(self.lengths))
                left = room
            else:
                self.lengths.append(length)
                left -= length
        del self.lengths[self.first[-1] :]

    def __len__(self) -> int:
        return len(self.first) - 1

    def dealt(self, step: int, ranks: int, multiple_of: int = 1) -> Dealt:
        """The documents of ``step``, each at one place: as many micro-batches for every rank, a multiple of
        ``multiple_of``. Where a rank has fewer documents than that, its last ones are empty."""
        members = range(self.first[step], self.first[step + 1])
        hands = deal([self.cost(self.lengths[member]) for member in members], ranks)
        shares = [[members[place] for place in hand] for hand in hands]
        count = aligned(max(len(self._first_fit(share)) for share in shares), multiple_of)
        return [self._split(share, count) for share in shares]

    def idle(self, step: int, ranks: int) -> float:
        """The share of all ranks' time in which they wait for the one that has most to do, by the cost."""
        costs = [sum(self.cost(self.lengths[n]) for row in rows for n in row) for rows in self.dealt(step, ranks)]
        return 1 - sum(costs) / (ranks * max(costs))

    def batches(self, step: int, rank: int, ranks: int, multiple_of: int = 1) -> list[Row]:
        """The micro-batches of ``step`` of one data-parallel rank."""
        return [self._row(members) for members in self.dealt(step, ranks, multiple_of)[rank]]

    def row_length(self, members: list[int]) -> int:
        """Positions of the row of these documents, padding included."""
        return aligned(max(sum(map(self._room, members)), 1), self.row_multiple)

    def _row(self, members: list[int]) -> Row:
        return row([self.documents[member] for member in sorted(members)], self.row_length(members), self.multiple)

    def _room(self, document: int) -> int:
        return aligned(self.lengths[document], self.multiple)

    def _split(self, share: list[int], count: int) -> list[list[int]]:
        """``share`` in ``count`` rows of even cost, the costliest first; where that overfills one, as first-fit has it.

        First, so that the allocator has met the longest row before the shorter ones.
        """
        hands = deal([self.cost(self.lengths[member]) for member in share], count)
        rows = [[share[place] for place in hand] for hand in hands]
        if any(sum(map(self._room, members)) > self.seq_length for members in rows):
            found = self._first_fit(share)
            rows = found + [[] for _ in range(count - len(found))]
        return sorted(rows, key=lambda members: -sum(self.cost(self.lengths[member]) for member in members))

    def _first_fit(self, share: list[int]) -> list[list[int]]:
        """First-fit decreasing: rows of ``share``, as few as it finds."""
        rows: list[list[int]] = []
        left: list[int] = []
        for member in sorted(share, key=lambda member: -self._room(member)):
            room = self._room(member)
            place = next((index for index, free in enumerate(left) if free >= room), None)
            if place is None:
                rows.append([])
                left.append(self.seq_length)
                place = len(rows) - 1
            rows[place].append(member)
            left[place] -= room
        return rows


def deal(costs: Sequence[float], hands: int) -> list[list[int]]:
    """The places of ``costs`` in ``hands`` hands: the costliest first, each to the hand that has the least so far."""
    held: list[list[int]] = [[] for _ in range(hands)]
    sums = [0.0] * hands
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        least = sums.index(min(sums))
        held[least].append(place)
        sums[least] += costs[place]
    return held
