"""The schema of ``conf/prepare``: what becomes of a data set's files."""

from dataclasses import dataclass, field
from typing import Optional

from nemo_cdt.utils.enums import StrEnum


class Kind(StrEnum):
    """What a row of the files is.

    books: a long text, cut into documents of ``seq_length`` tokens.  questions: a question, and passages or none, with
    an answer, of which a chat is made.  rows: a chat (``messages``) or a text, as ``data=jsonl`` reads them.
    """

    books = "books"
    questions = "questions"
    rows = "rows"


@dataclass(kw_only=True)
class Fields:
    """The names of a row's fields. A null is a field that the data set does not have."""

    text: str = "text"  # books: the text
    question: Optional[str] = None  # questions: the question
    answer: Optional[str] = None  # questions: the answer
    passages: Optional[str] = None  # questions: the list of passages
    passage: Optional[str] = None  # the text within a passage; null: a passage is a text itself
    evidence: Optional[str] = None  # the supporting passages: a list, or how many
    type: Optional[str] = None  # what kind of question it is: see reasoning_types
    language: Optional[str] = None  # of the question and its passages


@dataclass(kw_only=True)
class Wording:
    """How the user's turn is written."""

    passage: str = "Passage {number}:\n{text}\n"  # how a passage is written
    prompt: str = "{passages}\n{question}"  # what the user's turn says
    reasoning_prompt: Optional[str] = None  # what it says to rows of reasoning_types


@dataclass(kw_only=True)
class Source(Wording):
    kind: Kind = Kind.rows  # what a row of the files is: SET says it
    input: Optional[str] = None  # the data set's local copy: a file or a folder
    hub: Optional[str] = None  # the data set's name on the Hugging Face Hub
    licence: Optional[str] = None  # the data set's licence, for the summary
    samples: Optional[int] = None  # documents to train on; null: all
    validation_samples: int = 0  # documents held out beside those; no row and no book gives to both
    seq_length: Optional[int] = None  # books: the number of tokens of every document
    min_tokens: int = 2  # the least tokens of a document, its chat template's included
    max_tokens: Optional[int] = None  # the most tokens of a document; null: any number
    evidence: list[int] = field(default_factory=list)  # numbers of supporting passages, equally often; empty: any
    languages: Optional[list[str]] = None  # values of fields.language whose rows are taken; null: all
    reasoning_types: list[str] = field(default_factory=list)  # values of fields.type that get reasoning_prompt
    lengths: list[int] = field(default_factory=list)  # in tokens: one is drawn for each row, and filled; empty: none
    fields: Fields = field(default_factory=Fields)
    translations: dict[str, Wording] = field(default_factory=dict)  # passage and prompts of other languages


@dataclass(kw_only=True)
class Prepare(Source):
    """One source."""

    output: Optional[str] = None  # the folder to write; one that was interrupted goes on
    tokenizer: Optional[str] = None  # a Hugging Face folder, or "byte"
    seed: int = 42  # the seed of what is taken
    workers: int = 1  # the number of processes; they change nothing but the time


@dataclass(kw_only=True)
class Alignment:
    """Both sources, mixed."""

    longmit: Source = field(default_factory=Source)
    longalpaca: Source = field(default_factory=Source)
    output: Optional[str] = None
    tokenizer: Optional[str] = None
    seed: int = 42
    workers: int = 1


Settings = Prepare | Alignment
SCHEMAS: dict[str, type[Settings]] = {
    "pg19": Prepare,
    "longmit": Prepare,
    "longalpaca": Prepare,
    "alignment": Alignment,
    "jsonl": Prepare,
}
"""By the name of what is prepared, which is that of its file in ``conf/prepare``."""


def sources(name: str, settings: Settings) -> dict[str, Source]:
    """Each source by its name."""
    if isinstance(settings, Alignment):
        return {"longmit": settings.longmit, "longalpaca": settings.longalpaca}
    return {name: settings}


def prefix(name: str, settings: Settings) -> str:
    """Of the keys of the source ``name`` on the command line."""
    return f"{name}." if isinstance(settings, Alignment) else ""
