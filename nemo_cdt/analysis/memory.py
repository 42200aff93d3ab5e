"""What one observation needs, before it runs. Bytes; weights are counted apart.

Every layer is recomputed in the backward pass, so that all layers keep their inputs and one of them all it computes.
"""

import psutil
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from nemo_cdt.analysis.attention import CHUNK
from nemo_cdt.analysis.flow import TYPES

GIB = 1 << 30


def parameters(config: PretrainedConfig) -> int:
    """How many weights; shared ones once."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())


def per_token(config: PretrainedConfig, width: int, training: bool = False) -> int:
    """Bytes of a fed token. width: bytes of an element.  training: weights have gradients, and need their inputs.

    Of a frozen linear layer autograd keeps nothing; of the rest, what its formulas name.
    """
    hidden, mlp = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    query, key = config.num_attention_heads * head, config.num_key_value_heads * head
    layer_inputs = config.num_hidden_layers * hidden * width
    embedding = 3 * hidden * width  # the leaf that is fed, its gradient, and that of the last layer's output
    gated = 3 * mlp * width  # gate, its activation, up
    heads = (4 * query + 2 * key) * width  # q, K and V of every head, the output; k and v for the watch
    norms = 2 * hidden * 4  # each keeps its input in fp32
    linear = (3 * hidden + query + mlp) * width if training else 0
    backward = 3 * mlp * width + hidden * (2 * width + 3 * 4)  # gradients of the MLP, of residual and norm
    return layer_inputs + embedding + gated + heads + norms + linear + backward + 16 * TYPES


def per_row(config: PretrainedConfig, width: int) -> int:
    """Bytes of a row of the answer: its logits, in fp32 too, and their gradients."""
    return config.vocab_size * (2 * width + 3 * 4)


def fixed(tokens: int, rows: int, heads: int) -> int:
    """Attention rows in chunks: scores, slopes, mask and the softmax's input."""
    return 4 * 4 * min(CHUNK, heads * rows * tokens)


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what an earlier model left counts as taken
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def require_room(
    config: PretrainedConfig, where: str, tokens: int, rows: int, width: int, copies: int, free: int
) -> None:
    """``copies``: how many times the weights are held, gradients and moments of an optimizer among them.

    Raises:
        ValueError: where a sequence does not fit ``free`` bytes; it says what would.
    """
    weights = copies * width * parameters(config)
    around = per_row(config, width) * rows + fixed(tokens, rows, config.num_attention_heads)
    each = per_token(config, width, training=copies > 1)
    need = weights + around + each * tokens
    if need <= free:
        return
    room = (free - weights - around) // each
    remedy = (
        f"at most {room:,} tokens fit, with dtype={'fp32' if width == 4 else 'bf16'}"
        if room > 0
        else (f"the weights alone are {weights / GIB:.1f}: it needs a larger device")
    )
    raise ValueError(
        f"{where} has {tokens:,} tokens, which need about {need / GIB:.1f} GiB, and {free / GIB:.1f} are free: {remedy}"
    )
