"""From documents to the rows a model is fed. numpy only."""

from collections.abc import Sequence

import numpy as np

from nemo_cdt.data.documents import IGNORE, Document, Documents

Row = dict[str, np.ndarray]
"""The entries of :class:`nemo_cdt.megatron.microbatch.MicroBatch`, without the batch dimension."""


class Rows:
    """One document a row, padded to ``seq_length``.

    key: of each document, which of its tokens are key tokens, bool [n]; then rows have an entry ``key``, float32 [S],
    at the positions that predict them.
    """

    def __init__(self, documents: Documents, seq_length: int, key: Sequence[np.ndarray] | None = None) -> None:
        self.documents = documents
        self.seq_length = seq_length
        self.key = key

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> Row:
        entries = row([self.documents[index]], self.seq_length)
        del entries["cu_seqlens"]
        if self.key is not None:
            entries["key"] = np.zeros(self.seq_length, dtype=np.float32)
            entries["key"][: len(self.key[index]) - 1] = self.key[index][1:]
        return entries


class PackedRows:
    """``count`` rows, each filled with whole documents in their order for as long as the next one fits.

    Asks every document it needs for its length. ``multiple``: each document is padded to a multiple of it,
    2 * context-parallel size where that is above 1.

    Raises:
        ValueError: where the documents do not fill ``count`` rows.
    """

    def __init__(self, documents: Documents, seq_length: int, *, count: int, multiple: int = 1) -> None:
        self.documents = documents
        self.seq_length = seq_length
        self.multiple = multiple
        self.first = [0]  # of each row, and one past the last row
        self.wasted = 0  # padded positions in all rows together
        index, used, fed = 0, 0, 0
        while len(self.first) <= count:
            if index == len(documents):
                raise ValueError(f"{index} documents fill {len(self.first) - 1} of the {count} rows of training")
            length = documents.length(index) - 1
            room = aligned(length, multiple)
            if used and used + room > seq_length:
                self.first.append(index)
                self.wasted += seq_length - fed
                used, fed = 0, 0
                continue
            used, fed, index = used + room, fed + length, index + 1

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        members = range(self.first[index], self.first[index + 1])
        return row([self.documents[i] for i in members], self.seq_length, self.multiple)


def row(documents: Sequence[Document], seq_length: int, multiple: int = 1) -> Row:
    """Documents side by side: of each, tokens 0..n-2 are fed and labels 1..n-1 predicted; padding behind each and all.
    Of none, a row of padding, which trains nothing.

    Raises:
        ValueError: where they do not fit, or one has no label behind its first token.
    """
    lengths = [len(document.input_ids) - 1 for document in documents]
    starts = np.cumsum([0, *(aligned(length, multiple) for length in lengths)])
    if starts[-1] > seq_length:
        raise ValueError(
            f"documents of {[n + 1 for n in lengths]} tokens need {starts[-1]} positions: set data.seq_length to that, "
            "or data.truncate=true"
        )
    entries = _empty(seq_length, typed=bool(documents) and documents[0].types is not None)
    for index, (document, start, fed) in enumerate(zip(documents, starts, lengths, strict=False)):
        _place(entries, index, document, slice(start, start + fed))
    entries["document_lengths"] = np.array(lengths or [0])
    # The padding behind is a document to attention.
    edges = starts if starts[-1] == seq_length else [*starts, seq_length]
    entries["cu_seqlens"] = np.array(edges, dtype=np.int32)
    return entries


def _empty(seq_length: int, typed: bool) -> Row:
    integers = ("tokens", "labels", "position_ids", *(("types",) if typed else ()))
    entries = {name: np.zeros(seq_length, dtype=np.int64) for name in integers}
    entries |= {name: np.zeros(seq_length, dtype=np.float32) for name in ("loss_mask", "label_share")}
    entries["documents"] = np.full(seq_length, -1, dtype=np.int64)
    entries["positions"] = np.arange(seq_length)
    return entries


def _place(entries: Row, index: int, document: Document, at: slice) -> None:
    labelled = document.labels[1:] != IGNORE
    if not labelled.any():
        raise ValueError("a document without a labelled token behind its first")
    entries["tokens"][at] = document.input_ids[:-1]
    entries["labels"][at] = np.where(labelled, document.labels[1:], 0)
    entries["loss_mask"][at] = labelled
    entries["label_share"][at] = labelled / np.float32(labelled.sum())
    entries["position_ids"][at] = np.arange(at.stop - at.start)
    entries["documents"][at] = index
    if document.types is not None:
        entries["types"][at] = document.types[:-1]


def aligned(length: int, multiple: int) -> int:
    """``length``, or the next multiple of ``multiple`` above it."""
    return -(-length // multiple) * multiple
