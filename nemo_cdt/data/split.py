"""From the ``data`` group of a run's configuration to its documents."""

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from nemo_cdt.config import Data, DataName
from nemo_cdt.data.documents import Documents
from nemo_cdt.data.jsonl import JsonlDocuments
from nemo_cdt.data.multihop import MultihopDocuments
from nemo_cdt.data.order import Shuffled, Subset
from nemo_cdt.data.preferences import PreferenceDocuments


def load_documents(
    data: Data,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    max_documents: int,
    vocab_size: int,
    prompted: bool = False,
) -> tuple[Documents, Documents]:
    """Training and validation documents, which share none.

    Training document i is the run's i-th sample: ``max_documents`` of them, in the run's order, so wrap them in no
    sampler that shuffles. ``prompted``: each must have a prompt that is not trained on, as multi-hop questions do.

    Raises:
        ValueError: for what is wrong with the data.
    """
    if data.name is DataName.multihop:
        if len(tokenizer) > vocab_size:
            raise ValueError(f"model.vocab_size={vocab_size} is smaller than the tokenizer's {len(tokenizer)}")
        return _multihop(data, tokenizer, seed, max_documents)
    train, validation = _jsonl(data, tokenizer, seed, vocab_size, prompted)
    return Shuffled(train, seed=seed, length=max_documents, shuffle=data.shuffle), validation


def _multihop(
    data: Data, tokenizer: PreTrainedTokenizerFast, seed: int, max_documents: int
) -> tuple[Documents, Documents]:
    train, validation = (
        _questions(data, tokenizer, seed=seed, size=size, haystack=data.path, split=split)
        for split, size in [("train", max_documents), ("validation", data.validation_samples)]
    )
    return train, validation


def require_room(data: Data, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise ValueError where the facts of a multi-hop question may not fit into a row."""
    _questions(data, tokenizer, seed=0, size=0)


def _questions(data: Data, tokenizer: PreTrainedTokenizerFast, **more: Any) -> MultihopDocuments:
    length = data.document_length or data.seq_length
    return MultihopDocuments(tokenizer, seq_length=length, **data.questions(), **more)


def _jsonl(
    data: Data, tokenizer: PreTrainedTokenizerFast, seed: int, vocab_size: int, prompted: bool
) -> tuple[Documents, Documents]:
    assert data.path is not None, "nemo_cdt.validation checks it"

    kind = PreferenceDocuments if data.name is DataName.preferences else JsonlDocuments

    def load(path: str) -> JsonlDocuments:
        return kind(
            path,
            tokenizer,
            seq_length=data.document_length or data.seq_length,
            truncate=data.truncate,
            vocab_size=vocab_size,
            prompted=prompted,
        )

    rows = load(data.path)
    if data.validation_path is not None:
        return rows, load(data.validation_path)
    if data.validation_samples >= len(rows):
        raise ValueError(
            f"data.validation_samples={data.validation_samples} leaves nothing of the {len(rows)} rows of {data.path} "
            "to train on; set fewer, or data.validation_path"
        )
    order = np.random.default_rng(seed).permutation(len(rows))
    held_out, kept = np.sort(order[: data.validation_samples]), np.sort(order[data.validation_samples :])
    return Subset(rows, kept), Subset(rows, held_out)
