"""Text to hide facts in: the user's, or the Python language reference, which every CPython carries."""

import re
from io import TextIOWrapper
from pathlib import Path
from pydoc_data.topics import topics

from nemo_cdt.utils.reading import blamed_on, opened

MAX_CHARACTERS = 1 << 26
"""What is read of a folder at most: every process holds it, and even at 128K tokens a sample needs under 1 %."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=\W*[A-Z])|(?<=[。\uff01\uff1f])|\n\s*\n")
_PROSE = re.compile(r"[A-Z][a-z]* [a-z].*\.", re.DOTALL)
_MARKUP = re.compile(r"\*\*\*|===|::=|>>>|\|")


def load_haystack(path: str | None) -> list[str]:
    """Sentences in reading order, white space normalised.

    path: a UTF-8 text file, or a folder whose ``.txt`` files are read in the order of their names; None for the
    default, which is one text per version of Python: 150 thousand characters.
    """
    text = _language_reference() if path is None else _read(Path(path))
    sentences = [" ".join(sentence.split()) for sentence in _SENTENCE_END.split(text)]
    sentences = [sentence for sentence in sentences if sentence]
    if not sentences:
        raise ValueError(f"data.path={path}: no text in it to hide facts in")
    return sentences


def _language_reference() -> str:
    paragraphs = re.split(r"\n\s*\n", "\n\n".join(topics[name] for name in sorted(topics)))
    prose = (text for text in map(str.strip, paragraphs) if _PROSE.fullmatch(text) and not _MARKUP.search(text))
    return "\n\n".join(dict.fromkeys(prose))


def _read(path: Path) -> str:
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    texts: list[str] = []
    room = MAX_CHARACTERS
    for file in files:
        try:
            with opened(file) as stream, blamed_on(file, "not UTF-8 text"):
                texts.append(TextIOWrapper(stream, encoding="utf-8").read(room))
        except ValueError as error:
            raise ValueError(f"data.path={error}") from error
        room -= len(texts[-1])
        if room <= 0:
            break
    return "\n\n".join(texts)
