"""Whether a model answers right, as greedy decoding would: every token the likeliest after those before it."""

import torch
from torch import Tensor


def is_right(logits_RV: Tensor, answer_R: Tensor) -> Tensor:
    """Of one answer, bool [].

    Args:
        logits_RV: at the positions that predict the answer's tokens.
        answer_R: those tokens.
    """
    return (logits_RV.argmax(dim=-1) == answer_R).all()


def wrong_tokens(likeliest_N: Tensor, index_N: Tensor, rows: int) -> Tensor:
    """How many labelled tokens of each row are not the likeliest, fp32 [rows]; a row without any is right.

    Ranks that hold parts of the rows add theirs up.

    Args:
        likeliest_N: of each labelled token, whether it is the likeliest.
        index_N: its place among [S, B] positions, flattened.
    """
    wrong_B = torch.zeros(rows, device=likeliest_N.device)
    return wrong_B.index_add_(0, index_N % rows, (~likeliest_N).float())
