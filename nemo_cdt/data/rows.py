"""From documents to the rows a model is fed. numpy only."""

import numpy as np

from nemo_cdt.data.documents import IGNORE, Document


def row(document: Document, seq_length: int) -> dict[str, np.ndarray]:
    """One document as a row of ``seq_length`` positions: tokens 0..n-2 fed, labels 1..n-1, padding behind.

    Returns the entries of :class:`nemo_cdt.megatron.microbatch.MicroBatch`, without the batch dimension.

    Raises:
        ValueError: where the document has more than ``seq_length + 1`` tokens, or no label behind its first token.
    """
    fed = len(document.input_ids) - 1
    if fed > seq_length:
        raise ValueError(f"a document of {fed + 1} tokens is longer than data.seq_length + 1 = {seq_length + 1}")
    labels = document.labels[1:]
    labelled = labels != IGNORE
    if not labelled.any():
        raise ValueError("a document without a labelled token behind its first")

    def padded(values: np.ndarray, fill: int = 0) -> np.ndarray:
        return np.pad(values, (0, seq_length - fed), constant_values=fill)

    entries = {
        "tokens": padded(document.input_ids[:-1]),
        "labels": padded(np.where(labelled, labels, 0)),
        "loss_mask": padded(labelled.astype(np.float32)),
        "label_share": padded(labelled.astype(np.float32) / np.float32(labelled.sum())),
        "position_ids": np.arange(seq_length),
        "positions": np.arange(seq_length),
        "documents": padded(np.zeros(fed, dtype=np.int64), fill=-1),
        "document_lengths": np.array([fed]),
    }
    if document.types is not None:
        entries["types"] = padded(document.types[:-1].astype(np.int64))
    return entries
