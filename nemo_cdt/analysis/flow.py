"""Who informs the answer: attention, information flow (Eq. 1) and fact retrieval, from the answer's rows alone.

With q_y, K and V of a head and dO_y, the gradient of the loss by its output at the rows y that predict the answer,

    A_y = softmax(q_y K^T / sqrt(d))      dL/dA_y = dO_y V^T      IG[i, y] = A_y[i] * |dL/dA_y[i]|

is exact and takes |Y| x n elements a head. Shapes as in :mod:`nemo_cdt.analysis.attention`; T token types, L layers.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from nemo_cdt.analysis.attention import Call, attended, attention_rows, head_chunks
from nemo_cdt.data.documents import TokenType

TYPES = len(TokenType)


class AnswerRows:
    """A :class:`~nemo_cdt.analysis.attention.Watch` for one forward and backward pass of one sequence.

    Sums over what it has seen: of layers, heads and rows by token (``attention_N``, ``ig_N``, float64), and of rows and
    tokens by head and token type (:meth:`by_head`).

    rows_R: the positions that predict the answer.  types_N: int64, of :class:`TokenType`.
    """

    def __init__(self, rows_R: Tensor, types_N: Tensor, top_k: int) -> None:
        self.rows_R = rows_R
        self.called: set[int] = set()
        self.attention_N = torch.zeros(len(types_N), dtype=torch.float64, device=types_N.device)
        self.ig_N = torch.zeros_like(self.attention_N)
        self._types_N = types_N
        self._top_k = top_k
        self._layers: dict[int, Tensor] = {}

    def __call__(self, call: Call, output: Tensor) -> Tensor:
        self.called.add(call.layer)
        # The rows are chosen here: whole q need not be kept for the backward pass.
        return _Tap.apply(output, call.query[:, self.rows_R].detach(), call.key, call.value, call, self)

    @property
    def seen(self) -> set[int]:
        """The layers whose backward pass has come by."""
        return set(self._layers)

    def by_head(self) -> tuple[Tensor, Tensor, Tensor]:
        """Attention, IG, and how many tokens are in the top k of a row: float64 [L, H, T] each."""
        attention_LHT, ig_LHT, retrieved_LHT = torch.stack([each for _, each in sorted(self._layers.items())], dim=1)
        return attention_LHT, ig_LHT, retrieved_LHT

    def backward(self, call: Call, grad_HRD: Tensor, query_HRD: Tensor) -> None:
        """``call`` has the key and the value; its query is not used."""
        sums = torch.zeros(3, len(query_HRD), TYPES, dtype=torch.float64, device=grad_HRD.device)
        member_NT = one_hot(self._types_N, TYPES).double()
        for group, heads, rows in head_chunks(call, len(self.rows_R)):
            at_R = self.rows_R[rows]
            attention_HRN = attention_rows(query_HRD[heads, rows], call.key[group], at_R, call.scaling, call.window)
            slope_HRN = torch.einsum("hrd,nd->hrn", grad_HRD[heads, rows].float(), call.value[group].float())
            ig_HRN = slope_HRN.abs_().mul_(attention_HRN)
            for index, (scores_HRN, total_N) in enumerate([(attention_HRN, self.attention_N), (ig_HRN, self.ig_N)]):
                by_head_HN = scores_HRN.sum(dim=1, dtype=torch.float64)
                total_N += by_head_HN.sum(dim=0)
                sums[index, heads] += by_head_HN @ member_NT
            sums[2, heads] += self._retrieved(attention_HRN, at_R, call.window)
        self._layers[call.layer] = sums

    def _retrieved(self, attention_HRN: Tensor, rows_R: Tensor, window: int | None) -> Tensor:
        """How many of the top k of all rows are of each type, [H, T]. A row that sees fewer than k retrieves all."""
        top_HRK = attention_HRN.topk(min(self._top_k, attention_HRN.shape[-1]), dim=-1).indices
        seen_RN = attended(rows_R, torch.arange(attention_HRN.shape[-1], device=rows_R.device), window)
        real_HRK = seen_RN.expand_as(attention_HRN).gather(-1, top_HRK)
        return (one_hot(self._types_N[top_HRK], TYPES) * real_HRK.unsqueeze(-1)).sum(dim=(1, 2)).double()


class _Tap(torch.autograd.Function):
    """The identity on an attention's output, whose backward shows the gradient, and what the output was made of.

    K and V are saved through autograd, so that recomputation (activation checkpointing) recomputes them too, and
    nothing of a layer outlives its backward.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, query_HRD: Tensor, key: Tensor, value: Tensor, call: Call, rows: AnswerRows
    ) -> Tensor:
        ctx.save_for_backward(query_HRD, key, value)
        ctx.layer, ctx.scaling, ctx.window, ctx.rows = call.layer, call.scaling, call.window, rows
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query_HRD, key, value = ctx.saved_tensors
        call = Call(layer=ctx.layer, query=query_HRD, key=key, value=value, scaling=ctx.scaling, window=ctx.window)
        ctx.rows.backward(call, grad[0][:, ctx.rows.rows_R], query_HRD)
        return grad, None, None, None, None, None
