"""Documents in Megatron's indexed format, written by its own builder and read by its own data set.

A document is one sequence, its tokens, which are their own labels; or two: its tokens and its labels.
"""

import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from nemo_cdt.data.documents import Document
from nemo_cdt.utils.reading import blamed_on, opened

HEADER = struct.Struct("<9sQBQQ")
"""Of an index: what it is, its version, the code of int32, its sequences, its documents and one."""


def write_indexed(prefix: Path, documents: Iterable[Sequence[np.ndarray]]) -> None:
    """PREFIX.bin and PREFIX.idx, of the sequences of each document."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    for sequences in documents:
        builder.add_document(np.concatenate(sequences), [len(sequence) for sequence in sequences])
    builder.finalize(f"{prefix}.idx")


def _require_header(file: Path) -> None:
    """Megatron's reader asserts, and complains once more when it is forgotten half made."""
    with opened(file) as stream:
        header = stream.read(HEADER.size)
        size = os.fstat(stream.fileno()).st_size
    magic, version, code, sequences, documents = HEADER.unpack(header)
    if (magic, version, code) != (b"MMIDIDX\0\0", 1, DType.code_from_dtype(np.int32)):
        raise ValueError(f"its header is {header[:18]!r}")
    if size != HEADER.size + 12 * sequences + 8 * documents:
        raise ValueError(f"it has {size:,} bytes, and says {sequences:,} sequences and {documents:,} documents")


class IndexedDocuments:
    """``Documents`` of PREFIX.bin and PREFIX.idx, which are mapped into memory: a length costs no reading."""

    def __init__(self, prefix: Path) -> None:
        with blamed_on(f"{prefix}.idx", "it is no index of Megatron's", whatever=True):
            _require_header(Path(f"{prefix}.idx"))
            self._sequences = IndexedDataset(str(prefix))
            edges = self._sequences.document_indices
            self._require_within(Path(f"{prefix}.bin").stat().st_size)
        self._first, counts = edges[:-1], np.diff(edges)
        if not len(counts) or not np.isin(counts, (1, 2)).all() or edges[0] or edges[-1] != len(self._sequences):
            raise ValueError(f"{prefix}.idx: a document must be its tokens, or its tokens and its labels")
        self._last = edges[1:] - 1

    def _require_within(self, size: int) -> None:
        index = self._sequences.index
        starts, lengths = index.sequence_pointers, index.sequence_lengths.astype(np.int64)
        if (starts < 0).any() or (lengths < 1).any():
            raise ValueError("it has a sequence without a place or without tokens")
        if (starts + 4 * lengths).max() > size:
            raise ValueError(f"its sequences end behind the {size:,} bytes of its .bin")

    truncated = (0, 0)

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, index: int) -> Document:
        ids, labels = (self._sequences[int(at[index])].astype(np.int64) for at in (self._first, self._last))
        return Document(input_ids=ids, labels=labels)

    def length(self, index: int) -> int:
        return int(self._sequences.sequence_lengths[self._first[index]])
