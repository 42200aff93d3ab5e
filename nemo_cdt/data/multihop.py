"""The paper's preliminary task (Appendix B.1), generated: questions about facts hidden in a long haystack.

The facts keep their order, and around them stand a haystack, other facts that change nothing, and a few emojis.
:mod:`nemo_cdt.data.stories` has the facts and the questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from transformers import PreTrainedTokenizerFast

from nemo_cdt.data.documents import IGNORE, Document, TokenType
from nemo_cdt.data.haystack import load_haystack
from nemo_cdt.data.stories import PLACES, WORDS, Story, longest_facts, pick, questions, tell, tell_needle
from nemo_cdt.data.templates import placed
from nemo_cdt.data.tokenizer import encode

EMOJIS = [chr(code) for code in range(0x1F400, 0x1F43F)]
CHUNKS = 10
"""The haystack's equal parts; supporting facts stand at the beginnings of some of them."""

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


@dataclass(kw_only=True, slots=True)
class Frame:
    """What stands around the context, the question and the answer.

    ``gap``: between what follows the question and the answer, or its beginning.
    ``after``: the end of an answer that the model is to write too. Nothing where the answer is begun for it: a
    pretrained model writes a whole sentence then, and only the next word is asked for.
    """

    before: str
    question: str
    after_question: str
    gap: str
    begun: bool
    after: str

    def asked(self, question: str, beginning: str) -> str:
        """The question, up to where the model goes on."""
        asked = self.question + question + self.after_question
        return asked + self.gap + beginning if self.begun else asked


class MultihopDocuments:
    """``Documents`` of at most ``seq_length + 1`` tokens; the one at an index depends on (seed, split, index) alone.

    The answer is labelled, and the end of text (of a chat's turn) after it where it is not begun.

    Args:
        hops: some of 1 to 4, to draw from: how many facts the answer follows from.
        emojis: how many a sample holds.
        needles: the share of samples that ask for a single fact of RULER's kind instead.
        begun: whether the answer's sentence is begun, so that the answer is the likeliest next word.
        chat: whether a sample is a chat, by the tokenizer's template.
        haystack: see :func:`nemo_cdt.data.haystack.load_haystack`.
        split: "train" or "validation".

    Raises:
        ValueError: where the facts alone may not fit into ``seq_length``, the haystack cannot be read, or the
            tokenizer has no template for a chat.
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
        needles: float = 0.0,
        begun: bool = False,
        chat: bool = False,
        haystack: str | None = None,
        split: str = "train",
    ):
        self._tokenizer = tokenizer
        self._limit = seq_length + 1
        self._seed = [seed, ["train", "validation"].index(split)]
        self._size = size
        self._hops = list(hops)
        self._emojis = emojis
        self._needles = needles
        self._chat = chat
        self._frame = _chat_frame(tokenizer, begun) if chat else _bare_frame(begun)
        self._counts: dict[str, int] = {}
        needed = self._longest_facts()
        if needed > self._limit:
            raise ValueError(f"data.seq_length={seq_length} is too short for the facts: set at least {needed - 1}")
        self._haystack = load_haystack(haystack)

    truncated = (0, 0)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Document:
        return self.drawn(index)[1]

    def drawn(self, index: int) -> tuple[MultihopSample, Document]:
        """The document at ``index``, as text too."""
        sample, ids, types = self._draw(index)
        return sample, Document(input_ids=ids, labels=np.where(types == TokenType.answer, ids, IGNORE), types=types)

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
        needle = self._needles > 0 and rng.random() < self._needles
        story = tell_needle(rng) if needle else tell(rng, pick(rng, self._hops))
        emojis = [pick(rng, EMOJIS) for _ in range(self._emojis)]
        facts_alone = _sample(story, _hide(rng, story, emojis, []), self._frame)
        room = self._limit - len(self._encode(facts_alone)[0])
        context = _hide(rng, story, emojis, self._sentences(int(rng.integers(len(self._haystack))), room))
        while True:
            sample = _sample(story, context, self._frame)
            ids, types = self._encode(sample)
            if len(ids) <= self._limit:
                return sample, ids, types
            # Tokens merge differently in the whole text than in its pieces, so the sum may be a few off.
            self._shorten(context, len(ids) - self._limit)

    def _encode(self, sample: MultihopSample) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and types. A token is of the span its last character lies in, or, between two, of the next."""
        how = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
        encoding = encode(self._tokenizer, sample.text, add_special_tokens=not self._chat, **how)
        last_characters = np.array(encoding["offset_mapping"])[:, 1] - 1
        span = np.searchsorted([span.end for span in sample.spans], last_characters, side="right")
        types = np.array([span.type for span in sample.spans], dtype=np.uint8)[span]
        types[np.array(encoding["special_tokens_mask"]) == 1] = TokenType.irrelevant
        ids, eos = encoding["input_ids"], self._tokenizer.eos_token_id
        if self._chat or self._frame.begun:
            return np.array(ids, dtype=np.int64), types
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
        """Tokens of the longest sample without a haystack: facts, emojis, question, answer."""

        def of(hops: int) -> int:
            count, facts = longest_facts(hops)
            asked = (self._frame.asked(*words) for words in questions(hops))
            return count * longest(facts) + max(map(self._count, asked))

        def longest(texts: Sequence[str]) -> int:
            return max(self._count(" " + text) for text in texts)

        special = len(encode(self._tokenizer, "")["input_ids"]) + 1
        around = sum(map(self._count, (self._frame.before, self._frame.after)))
        facts_and_question = max(map(of, {*self._hops, *[0] * (self._needles > 0)}))
        return facts_and_question + self._emojis * longest(EMOJIS) + longest([*PLACES, *WORDS]) + around + special


def _hide(rng: np.random.Generator, story: Story, emojis: list[str], haystack: list[str]) -> list[Piece]:
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


def _bare_frame(begun: bool) -> Frame:
    return Frame(before="", question="Question: ", after_question="\nAnswer:", gap=" ", begun=begun, after="")


def _chat_frame(tokenizer: PreTrainedTokenizerFast, begun: bool) -> Frame:
    """The tokenizer's template around a user's message, which has the context and the question, and the answer."""
    message, answer = "The user's message.", "The assistant's answer."
    messages = [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]
    text, turns, begins = placed(tokenizer, messages)
    if len(begins) < len(messages) or len(turns) != 1:
        raise ValueError("data.chat=true: the tokenizer's chat template does not write messages as they are")
    between = text[begins[0] + len(message) : begins[1]]
    after = "" if begun else text[begins[1] + len(answer) : turns[0][1]]
    before = text[: begins[0]]
    return Frame(before=before, question="Question: ", after_question=between, gap="", begun=begun, after=after)


def _sample(story: Story, context: list[Piece], frame: Frame) -> MultihopSample:
    asked = frame.asked(story.question, story.beginning)
    pieces = [*context, (asked, TokenType.question), (story.answer + frame.after, TokenType.answer)]
    separators = ["", *[" "] * (len(context) - 1), "\n", " " if frame.begun else frame.gap]
    if frame.before:
        pieces, separators = [(frame.before, TokenType.irrelevant), *pieces], ["", *separators]
    text, spans, position = [], [], 0
    for separator, (piece, type) in zip(separators, pieces, strict=True):
        start = position + len(separator)
        position = start + len(piece)
        text += [separator, piece]
        spans.append(Span(start=start, end=position, type=type))
    return MultihopSample(
        text="".join(text), spans=spans, question=story.question, answer=story.answer, hops=story.hops
    )
