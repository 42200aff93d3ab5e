"""An MLP of long sequences in chunks: under full recomputation it is what a layer's backward needs most memory for.

Of the roughly 61 bytes a token and hidden unit that the backward of one Llama 3.1 layer holds 42 are its MLP's: both of
its inner activations (14 and 7) and their gradients. A token's MLP depends on no other token, so in chunks, each
recomputed in its own backward, only one chunk's are alive. Costs one more forward of the MLPs.

Shapes, as suffixes: S positions on this rank, B rows of the micro-batch, H hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel.random import _fork_rng, _get_all_rng_states, _set_all_rng_states
from megatron.core.transformer.mlp import MLP
from torch import Tensor, nn

Forward = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class ChunkedMLP(MLP):
    """Megatron's MLP, in ``config.mlp_chunks_for_prefill`` chunks of the sequence where layers are recomputed whole.

    Megatron's own chunking, of that name, is for inference alone.
    """

    def forward(
        self, hidden_states: Tensor, per_token_scale: Tensor | None = None, **of_experts: Any
    ) -> tuple[Tensor, Tensor | None]:
        if self.config.recompute_granularity != "full":
            return super().forward(hidden_states, per_token_scale)
        assert per_token_scale is None, "a mixture of experts"
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return Chunked.apply(super().forward, self.config.mlp_chunks_for_prefill, hidden_states, *trained), None


class Chunked(torch.autograd.Function):
    """Each chunk forward, and in backward each forward and backward again.

    A parameter has one gradient of all chunks, summed here: with ``overlap_grad_reduce`` Megatron reduces it when it
    arrives, and takes no second one. Megatron's ``checkpoint`` of each chunk would bring one a chunk.
    """

    @staticmethod
    def forward(ctx: Any, mlp: Forward, chunks: int, hidden_SBH: Tensor, *trained: nn.Parameter) -> Tensor:
        ctx.mlp, ctx.chunks, ctx.trained = mlp, chunks, trained
        ctx.rng_states = _get_all_rng_states()  # adapters have a dropout
        ctx.save_for_backward(hidden_SBH)
        done = [mlp(chunk) for chunk in hidden_SBH.chunk(chunks)]
        assert all(bias is None for _, bias in done), "no family has one"
        return torch.cat([output for output, _ in done])

    @staticmethod
    def backward(ctx: Any, grad_SBH: Tensor) -> tuple[Tensor | None, ...]:
        (hidden_SBH,) = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2]
        parts: list[Tensor] = []
        totals: list[Tensor | None] = [None] * len(ctx.trained)
        with _fork_rng(), torch.enable_grad():
            _set_all_rng_states(*ctx.rng_states)
            for chunk, grad in zip(hidden_SBH.chunk(ctx.chunks), grad_SBH.chunk(ctx.chunks), strict=True):
                leaf = chunk.detach().requires_grad_(wanted)
                inputs = (*ctx.trained, leaf) if wanted else ctx.trained
                found = torch.autograd.grad(ctx.mlp(leaf)[0], inputs, grad, allow_unused=True)
                parts += found[len(totals) :]
                totals = [_added(*each) for each in zip(totals, found, ctx.trained, strict=False)]
        return None, None, torch.cat(parts) if wanted else None, *totals


def _added(total: Tensor | None, grad: Tensor | None, parameter: nn.Parameter) -> Tensor | None:
    """Summed in fp32: one product over all chunks would be rounded once.

    Where a fused kernel has added the gradient to ``main_grad`` already, what it returned is but a placeholder.
    """
    if grad is None or getattr(parameter, "grad_added_to_main_grad", False):
        return grad
    return grad.to(torch.float32, copy=True) if total is None else total.add_(grad)
