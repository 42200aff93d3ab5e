"""Passages picked to fill a length: the supporting ones, at random places among as many others as fit."""

from collections.abc import Callable

import numpy as np

from nemo_cdt.data.jsonl import Tokens
from nemo_cdt.prepare.rejected import RejectedError


def picked(
    passages: list[str],
    supporting: list[str],
    *,
    target: int,
    count: Callable[[str], int],
    tokens: Callable[[list[str]], Tokens],
    rng: np.random.Generator,
) -> Tokens:
    """A document of at most ``target`` tokens that has every supporting passage.

    Args:
        passages: all, in the order in which the others are taken; the supporting ones may be among them.
        supporting: those that the answer rests on.
        target: the most tokens.
        count: the tokens of a passage, about.
        tokens: the document that has these passages, in this order.
        rng: draws the places of the supporting ones.

    Raises:
        RejectedError: where the supporting ones alone are too long, or all passages too short.
    """
    others = [passage for passage in passages if passage not in {*supporting}]
    needed = len(tokens(supporting)[0])
    if needed > target:
        raise RejectedError("too long", f"with its supporting passages alone {needed} tokens, more than {target}")
    chosen = _that_fit(others, target - needed, count)
    if len(chosen) == len(others):
        raise RejectedError("too few passages", f"its {len(passages)} passages do not fill {target} tokens")
    # Passages were counted by themselves: with other numbers and neighbours they may be a few tokens more.
    for kept in range(len(chosen), -1, -1):
        places = rng.permutation(len(supporting) + kept)[: len(supporting)]
        document = tokens(_spread(supporting, chosen[:kept], places))
        if len(document[0]) <= target:
            return document
    raise RejectedError("too long", f"with its supporting passages alone more than {target} tokens")


def _that_fit(passages: list[str], room: int, count: Callable[[str], int]) -> list[str]:
    """The first ones, up to the one that does not fit."""
    chosen = []
    for passage in passages:
        room -= count(passage)
        if room < 0:
            break
        chosen.append(passage)
    return chosen


def _spread(supporting: list[str], others: list[str], places: np.ndarray) -> list[str]:
    """``supporting`` at ``places`` of the result, in their order of ``places``; the others keep theirs."""
    at = dict(zip(places.tolist(), supporting, strict=True))
    rest = iter(others)
    return [at[place] if place in at else next(rest) for place in range(len(supporting) + len(others))]
