"""Whether a model answers right, as greedy decoding would: every token the likeliest after those before it."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel


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


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: Sequence[int], most: int) -> list[int]:
    """What a model writes after ``prompt``, ``most`` tokens or up to its end of text: each the likeliest.

    Penalties and the like, which its folder may ask for, are left out: no answer is judged by them.
    """
    given = torch.tensor([prompt], device=model.device)
    how = GenerationConfig(
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=cast(Any, model.generation_config).eos_token_id,
        pad_token_id=0,
        use_cache=not model.is_gradient_checkpointing,  # layers that are recomputed would pass over it
    )
    written = cast(Any, model).generate(
        given, attention_mask=torch.ones_like(given), generation_config=how, use_model_defaults=False
    )
    return written[0, given.shape[1] :].tolist()
