"""FLOPs of the two passes, and so what a CDT step must at least cost beside a plain one (design.md section 5)."""

from typing import Any, NamedTuple

HEAD_AT_LABELLED_ROWS = False
"""Whether the recipe computes the head at labelled positions only."""
AGAIN = {"none": (0, 0), "selective": (0, 1), "full": (1, 1)}
"""What a backward pass computes again, by ``recompute``: linears, attention."""


class Forward(NamedTuple):
    """FLOPs of one token's forward pass. ``model`` has the numbers of ``conf/model``."""

    linears: float
    attention: float  # causal: half of all pairs
    head: float

    @classmethod
    def of(cls, model: Any, seq_length: int, head_share: float = 1.0) -> "Forward":
        """head_share: of the positions, those at which the head is computed."""
        h, groups = model.hidden_size, model.num_query_groups / model.num_attention_heads
        weights = model.num_layers * (h * h * (2 + 2 * groups) + 3 * h * model.ffn_hidden_size)
        return cls(2 * weights, 2 * model.num_layers * h * seq_length, 2 * h * model.vocab_size * head_share)


def training(f: Forward, recompute: str = "none", attention_backward: float = 2.5) -> float:
    """A plain step's, per token. A fused attention backward computes the scores again: 2.5; model FLOPs count 2."""
    linears, attention = AGAIN[recompute]
    return (3 + linears) * f.linears + (1 + attention_backward + attention) * f.attention + 3 * f.head


def detection(f: Forward, recompute: str = "none", attention_backward: float = 2.5) -> float:
    """Detection's, per token: weights are frozen, so their gradients are not computed."""
    return training(f, recompute, attention_backward) - f.linears - f.head


def ratio(f: Forward, recompute: str, detection_recompute: str) -> float:
    """A CDT step's FLOPs over a plain step's: the floor of their times' ratio."""
    return 1 + detection(f, detection_recompute) / training(f, recompute)


def useful(f: Forward, kind: str) -> float:
    """Model FLOPs of a ``plain`` or ``cdt`` step per token, whatever is computed beside them: what MFU counts."""
    return training(f, attention_backward=2) + (detection(f, attention_backward=2) if kind == "cdt" else 0)
