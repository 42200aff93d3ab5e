"""What a data set of ours yields: documents of tokens, as Hugging Face users know them. No framework here."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np

IGNORE = -100
"""Label of a token that is not trained on, as in Hugging Face."""


class TokenType(IntEnum):
    """The paper's four kinds of context token (section 3), and the question and answer around them."""

    irrelevant = 0
    supporting = 1
    interference = 2
    low_frequency = 3
    question = 4
    answer = 5


@dataclass(kw_only=True, slots=True)
class Document:
    """One sequence. ``labels[i]`` labels token i itself: tokens 0..n-2 are fed, labels 1..n-1 are predicted.

    input_ids: int64 [n].  labels: int64 [n], ``IGNORE`` where not trained on.
    types: uint8 [n] of :class:`TokenType`, or None where the data set does not know.
    rejected: where this is an answer that is preferred, the same prompt with those that are not.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    types: np.ndarray | None = None
    rejected: "tuple[Document, ...]" = ()


class Documents(Protocol):
    """A map-style data set: the document at an index is the same whenever it is asked for.

    truncated: documents cut and tokens lost so far, by this process and its workers; one read twice is two.
    length: the number of a document's tokens, which some data sets know without reading it. Cuts nothing.
    """

    @property
    def truncated(self) -> tuple[int, int]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Document: ...
    def length(self, index: int) -> int: ...
