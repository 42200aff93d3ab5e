"""The paper's preliminary task (Appendix B.1), generated: multi-hop questions about facts hidden in a long haystack.

A person carries an object from one place to another; the answer is the first place. The facts that say so keep their
order, and around them stand a haystack, other facts that change nothing, and a few emojis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, product
from typing import TypeVar

import numpy as np
from transformers import PreTrainedTokenizerFast

from nemo_cdt.data.documents import IGNORE, Document, TokenType
from nemo_cdt.data.haystack import load_haystack
from nemo_cdt.data.tokenizer import encode

PERSONS = ["Mary", "Daniel", "Mike", "John", "Sandra"]
OBJECTS = ["apple", "football", "milk", "book", "hat", "key"]
PLACES = ["office", "bedroom", "bathroom", "kitchen", "hallway", "garden"]
MOVES = ["went to", "journeyed to", "travelled to", "moved to", "went back to"]
PICKS = ["picked up", "took", "grabbed", "got"]
DROPS = ["dropped", "put down", "discarded", "left"]
EMOJIS = [chr(code) for code in range(0x1F400, 0x1F43F)]
QUESTIONS = {
    3: "Where was the {thing} before the {place}?",
    4: "Where was the {thing}'s location prior to the place where the {thing} was discarded, left or dropped?",
}
CHUNKS = 10
"""The haystack's equal parts; supporting facts stand at the beginnings of some of them."""

T = TypeVar("T")
Piece = tuple[str, TokenType]


@dataclass(kw_only=True, slots=True)
class Span:
    """Characters ``start`` to ``end`` of a sample's text."""

    start: int
    end: int
    type: TokenType


@dataclass(kw_only=True, slots=True)
class MultihopSample:
    """One sample as text. ``spans`` are in order and cover all of it but the white space between them."""

    text: str
    spans: list[Span]
    question: str
    answer: str
    hops: int

    def parts(self, type: TokenType) -> list[str]:
        """The sentences (emojis, question, answer) of one type, in order."""
        return [self.text[span.start : span.end] for span in self.spans if span.type is type]


class MultihopDocuments:
    """``Documents`` of at most ``seq_length + 1`` tokens; the one at an index depends on (seed, split, index) alone.

    Only the answer, and the eos after it, is labelled. hops: 3, 4 or both, to draw from. emojis: how many a sample
    holds. haystack: see :func:`nemo_cdt.data.haystack.load_haystack`. split: "train" or "validation".

    Raises:
        ValueError: where the facts alone may not fit into ``seq_length``, or the haystack cannot be read.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        seq_length: int,
        seed: int,
        size: int,
        hops: Sequence[int],
        emojis: int,
        haystack: str | None = None,
        split: str = "train",
    ):
        self._tokenizer = tokenizer
        self._limit = seq_length + 1
        self._seed = [seed, ["train", "validation"].index(split)]
        self._size = size
        self._hops = list(hops)
        self._emojis = emojis
        self._counts: dict[str, int] = {}
        needed = self._longest_facts()
        if needed > self._limit:
            raise ValueError(f"data.seq_length={seq_length} is too short for the facts: set at least {needed - 1}")
        self._haystack = load_haystack(haystack)

    truncated = (0, 0)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Document:
        _, ids, types = self._draw(index)
        return Document(input_ids=ids, labels=np.where(types == TokenType.answer, ids, IGNORE), types=types)

    def length(self, index: int) -> int:
        """Generates the document: only its tokens tell."""
        return len(self._draw(index)[1])

    def sample(self, index: int) -> MultihopSample:
        """The document at ``index`` as text."""
        return self._draw(index)[0]

    def _draw(self, index: int) -> tuple[MultihopSample, np.ndarray, np.ndarray]:
        if not 0 <= index < self._size:
            raise IndexError(index)
        rng = np.random.default_rng([*self._seed, index])
        story = _tell(rng, _pick(rng, self._hops))
        emojis = [_pick(rng, EMOJIS) for _ in range(self._emojis)]
        facts_alone = _sample(story, _hide(rng, story, emojis, []))
        room = self._limit - len(self._encode(facts_alone)[0])
        context = _hide(rng, story, emojis, self._sentences(int(rng.integers(len(self._haystack))), room))
        while True:
            sample = _sample(story, context)
            ids, types = self._encode(sample)
            if len(ids) <= self._limit:
                return sample, ids, types
            # Tokens merge differently in the whole text than in its pieces, so the sum may be a few off.
            self._shorten(context, len(ids) - self._limit)

    def _encode(self, sample: MultihopSample) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and types. A token is of the span its last character lies in, or, between two, of the next."""
        encoding = encode(self._tokenizer, sample.text, return_offsets_mapping=True, return_special_tokens_mask=True)
        last_characters = np.array(encoding["offset_mapping"])[:, 1] - 1
        span = np.searchsorted([span.end for span in sample.spans], last_characters, side="right")
        types = np.array([span.type for span in sample.spans], dtype=np.uint8)[span]
        types[np.array(encoding["special_tokens_mask"]) == 1] = TokenType.irrelevant
        ids, eos = encoding["input_ids"], self._tokenizer.eos_token_id
        if eos is not None and ids[-1] != eos:
            ids, types = [*ids, eos], np.append(types, types[-1])
        types[-1] = TokenType.answer
        return np.array(ids, dtype=np.int64), types

    def _sentences(self, start: int, room: int) -> list[str]:
        """Sentences of the haystack from ``start`` on, round and round, of ``room`` tokens; the last one may be cut."""
        sentences = []
        for index in count(start):
            sentence = self._haystack[index % len(self._haystack)]
            length = max(1, self._count(" " + sentence))
            if length > room:
                break
            sentences.append(sentence)
            room -= length
        rest = self._cut(sentence, room - 1)
        return [*sentences, rest] if rest else sentences

    def _shorten(self, context: list[Piece], tokens: int) -> None:
        last = max(index for index, (_, type) in enumerate(context) if type is TokenType.irrelevant)
        text = self._cut(context[last][0], self._count(context[last][0]) - tokens)
        context[last : last + 1] = [(text, TokenType.irrelevant)] if text else []

    def _cut(self, text: str, room: int) -> str:
        """The first words of ``text`` that fit into ``room`` tokens."""
        offsets = encode(self._tokenizer, text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if room >= len(offsets):
            return text
        return text[: offsets[max(0, room)][0]].rpartition(" ")[0]

    def _count(self, text: str) -> int:
        if text not in self._counts:
            self._counts[text] = len(encode(self._tokenizer, text, add_special_tokens=False)["input_ids"])
        return self._counts[text]

    def _longest_facts(self) -> int:
        """Tokens of the longest sample without a haystack: 3 times as many facts as hops, emojis, question, answer."""

        def longest(*words: Sequence[str]) -> int:
            return max(self._count(" " + " ".join(sentence) + ".") for sentence in product(*words))

        def question(hops: int) -> int:
            asked = (_frame(QUESTIONS[hops].format(thing=t, place=p)) for t, p in product(OBJECTS, PLACES))
            return max(map(self._count, asked))

        fact = max(longest(PERSONS, MOVES, ["the"], PLACES), longest(PERSONS, PICKS + DROPS, ["the"], OBJECTS))
        special = len(encode(self._tokenizer, "")["input_ids"]) + 1
        facts_and_question = max(3 * hops * fact + question(hops) for hops in self._hops)
        return facts_and_question + self._emojis * longest(EMOJIS) + longest(PLACES) + special


@dataclass(kw_only=True, slots=True)
class _Story:
    supporting: list[str]
    interference: list[str]
    question: str
    answer: str


def _tell(rng: np.random.Generator, hops: int) -> _Story:
    """Figure 13, and for 3 hops bAbI's qa3."""
    person, thing = _pick(rng, PERSONS), _pick(rng, OBJECTS)
    answer, place = (PLACES[index] for index in rng.permutation(len(PLACES))[:2])
    picks = f"{person} {_pick(rng, PICKS)} the {thing}."
    moves = f"{person} {_pick(rng, MOVES)} the {answer}."
    moves_on = f"{person} {_pick(rng, MOVES)} the {place}."
    drops = f"{person} {_pick(rng, DROPS)} the {thing}."
    return _Story(
        supporting=[picks, moves, moves_on] if hops == 3 else [moves, picks, moves_on, drops],
        interference=_interfere(rng, int(rng.integers(hops, 2 * hops, endpoint=True)), person, thing),
        question=QUESTIONS[hops].format(thing=thing, place=place),
        answer=answer,
    )


def _interfere(rng: np.random.Generator, facts: int, person: str, thing: str) -> list[str]:
    """A consistent story of its own: ``person`` never moves in it and nobody touches ``thing``."""
    others = [name for name in PERSONS if name != person]
    free, holder = [name for name in OBJECTS if name != thing], {}
    story = []
    for _ in range(facts):
        action = _pick(rng, ["move", "pick", "drop"])
        if action == "pick" and free:
            held = free.pop(rng.integers(len(free)))
            holder[held] = _pick(rng, PERSONS)
            story.append(f"{holder[held]} {_pick(rng, PICKS)} the {held}.")
        elif action == "drop" and holder:
            held = _pick(rng, list(holder))
            free.append(held)
            story.append(f"{holder.pop(held)} {_pick(rng, DROPS)} the {held}.")
        else:
            story.append(f"{_pick(rng, others)} {_pick(rng, MOVES)} the {_pick(rng, PLACES)}.")
    return story


def _hide(rng: np.random.Generator, story: _Story, emojis: list[str], haystack: list[str]) -> list[Piece]:
    """The context: facts and emojis between the haystack's sentences, an interference after the last supporting one."""
    context = [(sentence, TokenType.irrelevant) for sentence in haystack]
    chunks = np.sort(rng.choice(CHUNKS, len(story.supporting), replace=False))
    _insert(context, _chunk_beginnings(haystack)[chunks], story.supporting, TokenType.supporting)
    after_the_last = max(index for index, (_, type) in enumerate(context) if type is TokenType.supporting) + 1
    anywhere = rng.integers(0, len(context), len(story.interference) - 1, endpoint=True)
    behind = rng.integers(after_the_last, len(context), endpoint=True)
    _insert(context, np.append(anywhere, behind), story.interference, TokenType.interference)
    _insert(context, rng.integers(0, len(context), len(emojis), endpoint=True), emojis, TokenType.low_frequency)
    return context


def _chunk_beginnings(haystack: list[str]) -> np.ndarray:
    """For each of the chunks of equal length, the index of the sentence that it begins in."""
    ends = np.cumsum([len(sentence) for sentence in haystack] or [0])
    return np.searchsorted(ends, ends[-1] * np.arange(CHUNKS) / CHUNKS, side="right") * (len(haystack) > 0)


def _insert(context: list[Piece], places: np.ndarray, texts: list[str], type: TokenType) -> None:
    """Put ``texts``, in their order, before the pieces that now stand at ``places``."""
    for place, text in reversed(list(zip(np.sort(places), texts, strict=True))):
        context.insert(int(place), (text, type))


def _sample(story: _Story, context: list[Piece]) -> MultihopSample:
    pieces = [*context, (_frame(story.question), TokenType.question), (story.answer, TokenType.answer)]
    separators = ["", *[" "] * (len(context) - 1), "\n", " "]
    text, spans, position = [], [], 0
    for separator, (piece, type) in zip(separators, pieces, strict=True):
        start = position + len(separator)
        position = start + len(piece)
        text += [separator, piece]
        spans.append(Span(start=start, end=position, type=type))
    return MultihopSample(
        text="".join(text), spans=spans, question=story.question, answer=story.answer, hops=len(story.supporting)
    )


def _frame(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[rng.integers(len(options))]
