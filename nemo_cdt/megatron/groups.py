"""The ranks that share one sequence."""

from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from torch import Tensor
from torch.distributed import ProcessGroup


@dataclass(kw_only=True, slots=True)
class Groups:
    """The ranks that hold parts of one sequence's embedding, and this rank's place along them."""

    sequence: ProcessGroup | None  # all of them: context parallel, and tensor parallel where the sequence is split too
    tensor: ProcessGroup | None  # only where sequence parallelism splits the embedding further

    @classmethod
    def of_megatron(cls, sequence_parallel: bool) -> "Groups":
        if sequence_parallel:
            return cls(
                sequence=parallel_state.get_tensor_and_context_parallel_group(),
                tensor=parallel_state.get_tensor_model_parallel_group(),
            )
        return cls(sequence=parallel_state.get_context_parallel_group(), tensor=None)

    def all_reduce(self, tensor: Tensor) -> None:
        if self.sequence is not None and self.sequence.size() > 1:
            torch.distributed.all_reduce(tensor, group=self.sequence)

    def share(self, tensor_SB: Tensor) -> Tensor:
        """This rank's part of a tensor that is whole along the sequence-parallel ranks."""
        if self.tensor is None:
            return tensor_SB
        return tensor_SB.chunk(self.tensor.size())[self.tensor.rank()]
