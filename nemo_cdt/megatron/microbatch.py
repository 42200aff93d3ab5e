"""A micro-batch as both passes see it: this rank's positions, on the device."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from nemo_cdt.megatron.context import row_positions
from nemo_cdt.megatron.cross_entropy import Labelled

WHOLE = ("document_lengths", "cu_seqlens")
"""Entries about whole rows; every other one is [b, S] and is cut along S."""
OF_TRAINING = "of_training."


class MicroBatch(dict[str, Tensor]):
    """b rows, of which this rank holds s of S positions.

    tokens, labels, position_ids: int64 [b, s].  loss_mask: float32 [b, s], 1 where a label is trained on.
    label_share: float32 [b, s], one over the number of labels of the token's document; 0 where there is no label.
    documents: int64 [b, s], the document a token belongs to, counted within its row; -1 for padding.
    positions: int64 [b, s], the position in the row.
    types: int64 [b, s], :class:`nemo_cdt.data.documents.TokenType`, only where the data set knows them.
    document_lengths: int64 [b, D], tokens of each whole document, padding excluded; 0 past the row's last one.
    cu_seqlens: int32 [D + 1], boundaries of packed documents, only where rows are packed (then b = 1).
    labelled: int64 [n], where a label is trained on, in [s, b] laid out flat.
    Entries whose name begins with :data:`OF_TRAINING` are an objective's own, for the training pass alone.

    What an objective runs beside the two passes are micro-batches too, without what only these and metrics ask for.
    """

    def __init__(self, entries: dict[str, Tensor], *, row_length: int, longest: int, trains: bool = True) -> None:
        """``row_length`` is S, ``longest`` the longest document's positions: known here without asking the device.
        ``trains``: whether it is of the training pass."""
        super().__init__(entries)
        self.trains = trains
        self.row_length = row_length
        self.longest = longest
        self._labels: Labelled | None = None

    def for_detection(self) -> "MicroBatch":
        """The same batch, whose masked loss is the sum over documents of each one's own mean."""
        entries = {k: v for k, v in self.items() if not k.startswith(OF_TRAINING)}
        entries["loss_mask"] = self["label_share"]
        return MicroBatch(entries, row_length=self.row_length, longest=self.longest, trains=False)

    def labels(self) -> Labelled:
        """What the head predicts, and where; one object, in which the head leaves what it found."""
        if self._labels is None:
            rows, length = self["labels"].shape
            index_N = self["labelled"]
            labels_N = self["labels"].t().flatten()[index_N]
            shape, judged = (length, rows), "types" in self  # as validation asks where the data knows token types
            self._labels = Labelled(index_N=index_N, labels_N=labels_N, shape=shape, judged=judged)
        return self._labels

    def packed(self) -> PackedSeqParams | None:
        """Megatron's description of packed documents, or None."""
        if "cu_seqlens" not in self:
            return None
        boundaries = self["cu_seqlens"]
        return PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=boundaries,
            cu_seqlens_kv=boundaries,
            max_seqlen_q=self.longest,
            max_seqlen_kv=self.longest,
        )


def take(iterator: Iterator) -> MicroBatch:
    """The next batch of a data loader as this rank's :class:`MicroBatch`; one that is already so passes through.

    Keeps every entry on every pipeline stage: NeMo's own data step drops what it does not know, and middle stages need
    the documents' boundaries.
    """
    batch = loaded(next(iterator))
    return batch if isinstance(batch, MicroBatch) else place(batch)


def loaded(item: Any) -> dict[str, Tensor]:
    """The batch in what a data loader yields: by itself, or in Lightning's (batch, index, data loader index)."""
    return item[0] if isinstance(item, tuple) else item


def place(batch: dict[str, Tensor]) -> MicroBatch:
    """This rank's part of whole rows, on its device."""
    row_length = batch["tokens"].size(1)
    edges = batch["cu_seqlens"].flatten().tolist() if "cu_seqlens" in batch else [0, row_length]
    size = parallel_state.get_context_parallel_world_size()
    mine = row_positions(edges, size, parallel_state.get_context_parallel_rank())
    local = {k: v if size == 1 or k in WHOLE else v[:, mine] for k, v in batch.items()}
    if "cu_seqlens" in local:
        local["cu_seqlens"] = local["cu_seqlens"].flatten()
    # Counted here, on the CPU: on the device it would have to be waited for.
    local["labelled"] = local["loss_mask"].t().flatten().nonzero().flatten()
    device = torch.cuda.current_device()
    return MicroBatch(
        {k: v.to(device, non_blocking=True) for k, v in local.items()},
        row_length=row_length,
        longest=max(end - start for start, end in pairwise(edges)),
    )
