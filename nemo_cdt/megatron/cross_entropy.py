"""The language-model head and its cross-entropy at labelled positions only, in chunks whose logits live only there.

At 131,072 tokens and Llama 3.1's vocabulary the fp32 logits of all positions are 62.6 GiB, of which supervised
fine-tuning uses a few hundred rows. Where every position is labelled the logits of a chunk are made twice, once for the
loss and once for its gradient, and never kept.

Shapes, as suffixes: S positions on this rank, B rows of the micro-batch, N labelled positions among them, C of them in
one chunk, H hidden size, V the vocabulary's part on this tensor-parallel rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

CHUNK_BYTES = 2**30
"""Of one chunk's fp32 logits. Backward holds them and their bf16 gradient at a time, forward one copy more."""


@dataclass(kw_only=True, slots=True)
class Labelled:
    """The labelled positions of a micro-batch; passed to Megatron's model as its ``labels``.

    index_N: int64, where each is in [S, B] laid out flat.  labels_N: int64, the token to predict there.
    shape: (S, B).
    judged: whether forwards without gradients fill ``correct_N``, bool: the label is the argmax, which is what greedy
        decoding writes.
    """

    index_N: Tensor
    labels_N: Tensor
    shape: tuple[int, int]
    judged: bool = False
    correct_N: Tensor | None = None


class LabelledGPTModel(GPTModel):
    """Megatron's GPT model, whose head sees labelled positions alone. Given :class:`Labelled`, it returns [B, S]."""

    def _postprocess(
        self,
        hidden_states: Tensor,
        input_ids: Tensor,
        position_ids: Tensor,
        labels: Labelled | None,
        *rest: Any,
        **kw: Any,
    ) -> Tensor:
        if labels is None or not self.post_process:
            return super()._postprocess(hidden_states, input_ids, position_ids, labels, *rest, **kw)
        shared = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if shared else self.output_layer.weight
        return labelled_cross_entropy(
            hidden_states,
            weight,
            labels,
            group=self.pg_collection.tp,
            sequence_parallel=self.config.sequence_parallel,
        )


def labelled_cross_entropy(
    hidden_SBH: Tensor, weight_VH: Tensor, labelled: Labelled, *, group: ProcessGroup, sequence_parallel: bool
) -> Tensor:
    """The cross-entropy at each labelled position and 0 at every other, fp32 [B, S].

    ``hidden_SBH`` is this rank's part of S where ``sequence_parallel``. Where no position is labelled the result still
    has a gradient, of zero: under context parallelism the other ranks wait for this one's backward.
    """
    if sequence_parallel:
        hidden_SBH = gather_from_sequence_parallel_region(hidden_SBH, group=group)
    rows_NH = hidden_SBH.flatten(0, 1).index_select(0, labelled.index_N).to(weight_VH.dtype)
    if not sequence_parallel:
        rows_NH = copy_to_tensor_model_parallel_region(rows_NH, group=group)
    if labelled.judged and not torch.is_grad_enabled():
        labelled.correct_N = torch.empty_like(labelled.labels_N, dtype=torch.bool)
    loss_N = ChunkedCrossEntropy.apply(rows_NH, weight_VH, labelled.labels_N, group, labelled.correct_N)
    length, rows = labelled.shape
    loss = loss_N.new_zeros(length * rows).index_copy(0, labelled.index_N, loss_N)
    return loss.view(length, rows).t().contiguous()


class ChunkedCrossEntropy(torch.autograd.Function):
    """``loss_i = logsumexp(W x_i) - (W x_i)[label_i]``, fp32 [N], over a vocabulary split along ``group``.

    Its gradient, ``(softmax(W x_i) - onehot(label_i)) dloss_i``, needs the logits once more and communicates nothing:
    the gradient of ``x`` is this rank's part of a sum over ``group``, as that of Megatron's column-parallel linear is.
    """

    @staticmethod
    def forward(
        ctx: Any, rows_NH: Tensor, weight_VH: Tensor, labels_N: Tensor, group: ProcessGroup, correct_N: Tensor | None
    ) -> Tensor:
        local_N, mine_N = _local(labels_N, len(weight_VH), group.rank())
        loss_N = torch.empty(len(rows_NH), dtype=torch.float32, device=rows_NH.device)
        total_N = torch.empty_like(loss_N)
        for part in _chunks(len(rows_NH), len(weight_VH)):
            logits_CV = (rows_NH[part] @ weight_VH.t()).float()
            label_C = logits_CV.gather(1, local_N[part, None]).squeeze(1) * mine_N[part]
            total_N[part] = _over_group(torch.logsumexp(logits_CV, dim=1), label_C, group)
            loss_N[part] = total_N[part] - label_C
            if correct_N is not None:
                correct_N[part] = (_likeliest(logits_CV, group) == labels_N[part]) & label_C.isfinite()
        ctx.save_for_backward(rows_NH, weight_VH, local_N, mine_N, total_N)
        return loss_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        rows_NH, weight_VH, local_N, mine_N, total_N = ctx.saved_tensors
        grad_rows_NH = torch.empty_like(rows_NH)
        chunks = list(_chunks(len(rows_NH), len(weight_VH)))
        # Summed in fp32 where there are several chunks: one product over all rows would be rounded once.
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for part in chunks:
            grad_CV = (rows_NH[part] @ weight_VH.t()).float().sub_(total_N[part, None]).exp_()
            grad_CV.scatter_add_(1, local_N[part, None], -mine_N[part, None])
            grad_CV = grad_CV.mul_(grad_N[part, None]).to(weight_VH.dtype)
            grad_rows_NH[part] = grad_CV @ weight_VH
            if grad_weight_VH is not None:
                grad_weight_VH += grad_CV.t() @ rows_NH[part]
        return grad_rows_NH, None if grad_weight_VH is None else grad_weight_VH.to(weight_VH.dtype), None, None, None


def _chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, CHUNK_BYTES // (4 * vocabulary))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _local(labels_N: Tensor, vocabulary: int, rank: int) -> tuple[Tensor, Tensor]:
    """The labels as indices into this rank's part, 0 where they lie in another's; and 1.0 where they lie here."""
    local_N = labels_N - rank * vocabulary
    mine_N = (local_N >= 0) & (local_N < vocabulary)
    return torch.where(mine_N, local_N, 0), mine_N.float()


def _over_group(total_C: Tensor, label_C: Tensor, group: ProcessGroup) -> Tensor:
    """The logsumexp over the whole vocabulary, from the parts'; sums the labels' logits in place."""
    if group.size() == 1:
        return total_C
    most_C = total_C.clone()
    torch.distributed.all_reduce(most_C, op=ReduceOp.MAX, group=group)
    both_2C = torch.stack([(total_C - most_C).exp(), label_C])
    torch.distributed.all_reduce(both_2C, group=group)
    label_C.copy_(both_2C[1])
    return most_C + both_2C[0].log()


def _likeliest(logits_CV: Tensor, group: ProcessGroup) -> Tensor:
    """The token with the largest logit of the whole vocabulary, the first where several have it, as argmax."""
    vocabulary = logits_CV.shape[1]
    token_C = logits_CV.argmax(dim=1)
    if group.size() == 1:
        return token_C
    most_C = logits_CV.amax(dim=1)
    mine_C = most_C.clone()
    torch.distributed.all_reduce(most_C, op=ReduceOp.MAX, group=group)
    token_C = torch.where(mine_C == most_C, token_C + group.rank() * vocabulary, vocabulary * group.size())
    torch.distributed.all_reduce(token_C, op=ReduceOp.MIN, group=group)
    return token_C
