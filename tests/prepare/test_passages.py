import numpy as np
import pytest

from nemo_cdt.prepare.passages import picked
from nemo_cdt.prepare.rejected import RejectedError

SUPPORTING = ["SSSS", "TTTT"]
OTHERS = ["aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff"]


def pick(target, passages=(*OTHERS[:3], *SUPPORTING, *OTHERS[3:]), supporting=SUPPORTING, seed=0, around=0):
    """A token is a character; ``around``: what each passage takes besides when it is written."""

    def tokens(some):
        text = "".join(some) + "." * around * len(some)
        ids = np.frombuffer(text.encode(), dtype=np.uint8)
        return ids, ids

    found = picked([*passages], supporting, target=target, count=len, tokens=tokens, rng=np.random.default_rng(seed))
    return found[0].tobytes().decode()


def pieces(text):
    return [text[i : i + 4] for i in range(0, len(text), 4)]


@pytest.mark.parametrize(("target", "others"), [(8, 0), (11, 0), (12, 1), (20, 3), (31, 5)])
def test_supporting_passages_are_all_there_and_the_first_others_fill_the_length(target, others):
    found = pieces(pick(target))

    assert [piece for piece in found if piece in OTHERS] == OTHERS[:others]
    assert sorted(piece for piece in found if piece not in OTHERS) == SUPPORTING


def test_supporting_passages_stand_at_every_place_in_either_order():
    found = {tuple(map(pieces(pick(16, seed=seed)).index, SUPPORTING)) for seed in range(200)}

    assert found == {(i, j) for i in range(4) for j in range(4) if i != j}


def test_a_document_is_never_longer_than_its_target_whatever_stands_around_its_passages():
    assert len(pick(20, around=1)) == 20  # four passages of five tokens; by their own counts five would fit
    assert len(pick(12, around=2)) == 12


@pytest.mark.parametrize(
    ("target", "around", "kind"), [(7, 0, "too long"), (9, 1, "too long"), (32, 0, "too few passages")]
)
def test_a_row_that_cannot_fill_its_target_or_is_above_it_says_so(target, around, kind):
    with pytest.raises(RejectedError) as raised:
        pick(target, around=around)

    assert raised.value.kind == kind
