"""Where the positions of a row lie under context parallelism: Megatron's and Transformer Engine's zig-zag order.

A document of length n on C ranks is cut into 2C equal chunks; rank r holds chunks r and 2C-1-r, so that causal
attention costs every rank the same. A row that is one document is the case of one.
"""

from itertools import pairwise

import torch
from torch import Tensor


def row_positions(cu_seqlens: list[int], cp_size: int, cp_rank: int) -> Tensor:
    """The row positions that ``cp_rank`` holds, in its order; int64 [row length / cp_size].

    ``cu_seqlens``: the documents' boundaries in the row, from 0 to its length.

    Raises:
        ValueError: where a document cannot be cut into 2 * cp_size equal chunks.
    """
    if cp_size == 1:
        return torch.arange(cu_seqlens[-1])
    pieces = []
    for start, end in pairwise(cu_seqlens):
        chunk, rest = divmod(end - start, 2 * cp_size)
        if rest:
            raise ValueError(
                f"a document of {end - start} positions cannot be cut in 2 * parallel.context = {2 * cp_size} chunks"
            )
        for index in (cp_rank, 2 * cp_size - 1 - cp_rank):
            pieces.append(torch.arange(start + index * chunk, start + (index + 1) * chunk))
    return torch.cat(pieces)


def document_of(positions: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The document that each row position belongs to: its index among the boundaries."""
    return torch.searchsorted(cu_seqlens, positions, right=True) - 1
