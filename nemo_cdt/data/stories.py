"""What the generated questions are about: facts that a question follows from, and others that mislead.

Multi-hop questions are the paper's (Figure 13) for 3 and 4 facts, and bAbI's first two tasks for 1 and 2. A needle is
one fact of its own, as in RULER: a person's secret word among other persons'.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np

PERSONS = ["Mary", "Daniel", "Mike", "John", "Sandra"]
OBJECTS = ["apple", "football", "milk", "book", "hat", "key"]
PLACES = ["office", "bedroom", "bathroom", "kitchen", "hallway", "garden"]
MOVES = ["went to", "journeyed to", "travelled to", "moved to", "went back to"]
PICKS = ["picked up", "took", "grabbed", "got"]
DROPS = ["dropped", "put down", "discarded", "left"]
OWNERS = [*PERSONS, "Laura", "Peter", "Susan"]
WORDS = ["velvet", "copper", "meadow", "lantern", "harbor", "marble", "pepper", "silver", "thunder", "winter", "purple"]
NEEDLES = 6
"""Secret words in a context; one of them is asked for."""
QUESTIONS = {
    1: "Where is {person}?",
    2: "Where is the {thing}?",
    3: "Where was the {thing} before the {place}?",
    4: "Where was the {thing}'s location prior to the place where the {thing} was discarded, left or dropped?",
}
BEGINNINGS = {
    1: "{person} is in the",
    2: "The {thing} is in the",
    3: "Before the {place}, the {thing} was in the",
    4: "Before that, the {thing} was in the",
}
"""By hops, how a sentence begins whose next word is the answer."""

T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class Story:
    """``hops``: how many facts the answer follows from; 0 for a needle.  ``beginning``: of a sentence it goes on."""

    supporting: list[str]
    interference: list[str]
    question: str
    beginning: str
    answer: str
    hops: int


def tell(rng: np.random.Generator, hops: int) -> Story:
    """A person carries a thing about; the answer is one of the places."""
    person, thing = pick(rng, PERSONS), pick(rng, OBJECTS)
    answer, place = (PLACES[index] for index in rng.permutation(len(PLACES))[:2])
    picks = f"{person} {pick(rng, PICKS)} the {thing}."
    moves = f"{person} {pick(rng, MOVES)} the {answer}."
    moves_on = f"{person} {pick(rng, MOVES)} the {place}."
    drops = f"{person} {pick(rng, DROPS)} the {thing}."
    facts = {1: [moves], 2: [picks, moves], 3: [picks, moves, moves_on], 4: [moves, picks, moves_on, drops]}
    words = {"person": person, "thing": thing, "place": place}
    return Story(
        supporting=facts[hops],
        interference=_interfere(rng, int(rng.integers(hops, 2 * hops, endpoint=True)), person, thing),
        question=QUESTIONS[hops].format(**words),
        beginning=BEGINNINGS[hops].format(**words),
        answer=answer,
        hops=hops,
    )


def tell_needle(rng: np.random.Generator) -> Story:
    """One person's secret word among others'."""
    owners = [OWNERS[index] for index in rng.permutation(len(OWNERS))[:NEEDLES]]
    words = [WORDS[index] for index in rng.permutation(len(WORDS))[:NEEDLES]]
    supporting, *interference = map(_needle, owners, words)
    return Story(
        supporting=[supporting],
        interference=interference,
        question=f"What is the secret word of {owners[0]}?",
        beginning=f"The secret word of {owners[0]} is:",
        answer=words[0],
        hops=0,
    )


def _needle(owner: str, word: str) -> str:
    return f"The secret word of {owner} is: {word}."


def longest_facts(hops: int) -> tuple[int, list[str]]:
    """Of a story of so many hops (0: a needle): at most how many facts, and all that one may be."""
    if not hops:
        return NEEDLES, [_needle(owner, word) for owner, word in product(OWNERS, WORDS)]
    moves = product(PERSONS, MOVES, ["the"], PLACES)
    touches = product(PERSONS, PICKS + DROPS, ["the"], OBJECTS)
    return 3 * hops, [" ".join(words) + "." for words in (*moves, *touches)]


def questions(hops: int) -> Iterator[tuple[str, str]]:
    """Each that may be asked, with the beginning of its answer."""
    if not hops:
        yield from ((f"What is the secret word of {o}?", f"The secret word of {o} is:") for o in OWNERS)
    else:
        for person, thing, place in product(PERSONS, OBJECTS, PLACES):
            words = {"person": person, "thing": thing, "place": place}
            yield QUESTIONS[hops].format(**words), BEGINNINGS[hops].format(**words)


def _interfere(rng: np.random.Generator, facts: int, person: str, thing: str) -> list[str]:
    """A consistent story of its own: ``person`` never moves in it and nobody touches ``thing``."""
    others = [name for name in PERSONS if name != person]
    free, holder = [name for name in OBJECTS if name != thing], {}
    story = []
    for _ in range(facts):
        action = pick(rng, ["move", "pick", "drop"])
        if action == "pick" and free:
            held = free.pop(rng.integers(len(free)))
            holder[held] = pick(rng, PERSONS)
            story.append(f"{holder[held]} {pick(rng, PICKS)} the {held}.")
        elif action == "drop" and holder:
            held = pick(rng, list(holder))
            free.append(held)
            story.append(f"{holder.pop(held)} {pick(rng, DROPS)} the {held}.")
        else:
            story.append(f"{pick(rng, others)} {pick(rng, MOVES)} the {pick(rng, PLACES)}.")
    return story


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[rng.integers(len(options))]
