"""What a step was fed: tokens, and the positions that they took."""

import torch
from megatron.core import parallel_state

from nemo_cdt.megatron.microbatch import MicroBatch


class Fed:
    """Counts a step's training pass; a pass before it, and an objective's own micro-batches, are not counted."""

    def __init__(self) -> None:
        self._tokens: torch.Tensor | float = 0.0  # on the device
        self._positions = 0.0

    def add(self, batch: MicroBatch, chunks: int) -> None:
        """Comes once for each of the ``chunks`` of an interleaved pipeline."""
        if batch.trains and "documents" in batch:
            self._tokens = self._tokens + (batch["documents"] >= 0).sum() / chunks
            self._positions += batch["documents"].numel() / chunks

    def of_all_ranks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and positions, each counted once: tensor-parallel ranks and stages have copies. Collective."""
        device = torch.cuda.current_device()
        counted = torch.stack([torch.as_tensor(n, device=device) for n in (self._tokens, self._positions)]).double()
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        torch.distributed.all_reduce(counted, group=group)
        return counted[0], counted[1]
