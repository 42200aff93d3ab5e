"""An MLP of long sequences in chunks: under full recomputation it is what a layer's backward needs most memory for.

Of the roughly 61 bytes a token and hidden unit that the backward of one Llama 3.1 layer holds 42 are its MLP's: both of
its inner activations (14 and 7) and their gradients. A token's MLP depends on no other token, so in chunks, each
recomputed in its own backward, only one chunk's are alive. Costs one more forward of the MLPs.
"""

import torch
from megatron.core.tensor_parallel import checkpoint
from megatron.core.transformer.mlp import MLP
from torch import Tensor


class ChunkedMLP(MLP):
    """Megatron's MLP, in ``config.mlp_chunks_for_prefill`` chunks of the sequence where layers are recomputed whole.

    Megatron's own chunking, of that name, is for inference alone.
    """

    def forward(self, hidden_states: Tensor, per_token_scale: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if self.config.recompute_granularity != "full":
            return super().forward(hidden_states, per_token_scale)
        assert per_token_scale is None, "a mixture of experts"
        whole = super().forward
        chunks = hidden_states.chunk(self.config.mlp_chunks_for_prefill)
        # The first forward of a recomputed layer keeps nothing: there is nothing to checkpoint.
        done = [checkpoint(whole, False, chunk) if torch.is_grad_enabled() else whole(chunk) for chunk in chunks]
        outputs, biases = zip(*done, strict=True)
        return torch.cat(outputs), biases[0]
