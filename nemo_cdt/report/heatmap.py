"""One sample as coloured text: which tokens the model called noise, and where the facts are."""

import codecs
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from nemo_cdt.data.documents import TokenType
from nemo_cdt.report.run import Sample
from nemo_cdt.utils.reading import encoded

SHOWN_WHOLE = 4096  # tokens; longer samples show windows
WINDOW = 48  # tokens shown on each side of one that matters
SHOWN_AT_MOST = 20_000  # tokens: a browser still scrolls smoothly

TYPE_NAMES = {
    TokenType.irrelevant: "irrelevant text",
    TokenType.supporting: "supporting fact",
    TokenType.interference: "interference fact",
    TokenType.low_frequency: "low-frequency word",
    TokenType.question: "question",
    TokenType.answer: "answer",
}

MEANINGS = {
    TokenType.irrelevant: "The text around the facts, which says nothing about the answer.",
    TokenType.supporting: "A sentence that the answer follows from.",
    TokenType.interference: "A sentence like a supporting one about other persons and things, which misleads.",
    TokenType.low_frequency: "A rare token strewn in, such as an emoji, which stands out and says nothing.",
    TokenType.question: "What is asked.",
    TokenType.answer: "What the model is to say.",
}

SHADES = {
    "noise3": "below ¼",
    "noise2": "¼ to ½",
    "noise1": "½ to 1",
    "critical0": "1 to 2",
    "critical1": "2 to 4",
    "critical2": "4 to 8",
    "critical3": "8 to 16",
    "critical4": "16 and more",
}
"""CSS class -> score in units of the threshold: one shade per doubling."""


@dataclass(kw_only=True, slots=True)
class Cell:
    """What is coloured as one: a token, or the tokens that share a character."""

    text: str
    shade: str
    title: str


@dataclass(kw_only=True, slots=True)
class Stretch:
    """Consecutive cells of one token type, or (``cells`` empty) a part that is not shown."""

    kind: str
    cells: list[Cell]
    skipped: int = 0


@dataclass(kw_only=True, slots=True)
class TypeRow:
    name: str
    kind: str
    tokens: int
    share: float
    noise: float
    score: float
    ratio: float


def stretches(sample: Sample) -> list[Stretch]:
    """The sample in reading order. Long ones are cut to windows around what matters; the rest is counted."""
    shown = visible(sample).tolist()
    types = [TokenType.irrelevant] * len(shown) if sample.types is None else [TokenType(kind) for kind in sample.types]
    spans = groupby(whole_characters(sample.tokens), key=lambda span: (any(shown[span[1] : span[2]]), types[span[1]]))
    return [_stretch(sample, kind, list(parts), seen) for (seen, kind), parts in spans]


def whole_characters(tokens: list[str]) -> Iterator[tuple[str, int, int]]:
    """Yields (text, start, stop): tokens joined where one character is split over them.

    Bytes that are no character of their own are lone surrogates (``bytes.decode("utf-8", "surrogateescape")``) and
    come back as the character; where a tokenizer has already put U+FFFD for them, a run of those becomes one.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text, start = "", 0
    for stop, token in enumerate(tokens, 1):
        text += decoder.decode(encoded(token), final=stop == len(tokens))
        unfinished = decoder.getstate()[0]
        lost = text.endswith("\ufffd") and stop < len(tokens) and tokens[stop].startswith("\ufffd")
        if not unfinished and not lost:
            yield re.sub("\ufffd+", "\ufffd", text), start, stop
            text, start = "", stop


def visible(sample: Sample) -> np.ndarray:
    """bool [tokens]: all of a short sample; else windows around typed tokens, or around the highest scores."""
    count = len(sample.tokens)
    if count <= SHOWN_WHOLE:
        return np.ones(count, bool)
    if sample.types is not None:
        matters = np.flatnonzero(sample.types != TokenType.irrelevant)
    else:
        matters = np.argsort(sample.scores)[-64:]
    shown = np.zeros(count, bool)
    for position in matters:
        shown[max(0, position - WINDOW) : position + WINDOW + 1] = True
    shown[np.flatnonzero(shown)[SHOWN_AT_MOST // 2 : -SHOWN_AT_MOST // 2]] = False
    return shown


def type_table(sample: Sample) -> list[TypeRow]:
    """A row per token type that occurs, then one over all tokens: the base rate to hold the others against."""
    types = np.full(len(sample.tokens), -1) if sample.types is None else sample.types
    rows = [_type_row(sample, name, kind.name, types == kind) for kind, name in TYPE_NAMES.items() if kind in types]
    return [*rows, _type_row(sample, "all tokens (base rate)", "all", np.ones(len(types), bool))]


def _type_row(sample: Sample, name: str, kind: str, chosen: np.ndarray) -> TypeRow:
    score = float(sample.scores[chosen].mean())
    return TypeRow(
        name=name,
        kind=kind,
        tokens=int(chosen.sum()),
        share=float(chosen.mean()),
        noise=float(sample.noise[chosen].mean()),
        score=score,
        ratio=_ratio(score, sample.threshold),
    )


def _stretch(sample: Sample, kind: TokenType, parts: list[tuple[str, int, int]], seen: bool) -> Stretch:
    if seen:
        return Stretch(kind=kind.name, cells=[_cell(sample, kind, *part) for part in parts])
    return Stretch(kind=kind.name, cells=[], skipped=parts[-1][2] - parts[0][1])


def _cell(sample: Sample, kind: TokenType, text: str, start: int, stop: int) -> Cell:
    score = float(sample.scores[start:stop].max())
    noise = bool(sample.noise[start:stop].all())
    ratio = _ratio(score, sample.threshold)
    facts = [
        f"score {score:.3g} = {ratio:.3g} of the threshold: {'noise' if noise else 'critical'}",
        None if sample.types is None else TYPE_NAMES[kind],
        f"token {start:,}" if stop - start == 1 else f"tokens {start:,} to {stop - 1:,}, highest score",
        "its next token is trained on" if sample.labels[start:stop].any() else None,
    ]
    return Cell(text="".join(map(_readable, text)), shade=_shade(ratio, noise), title="\n".join(filter(None, facts)))


def _ratio(score: float, threshold: float) -> float:
    return score / threshold if threshold > 0 else float("inf")


def _shade(ratio: float, noise: bool) -> str:
    doublings = math.floor(math.log2(min(max(1 / 256, ratio), 256)))
    return f"noise{min(max(1, -doublings), 3)}" if noise else f"critical{min(max(0, doublings), 4)}"


def _readable(character: str) -> str:
    """A control character as its picture (U+2400 on): HTML cannot hold it."""
    return chr(0x2400 + ord(character)) if character < " " and character not in "\n\t" else character
