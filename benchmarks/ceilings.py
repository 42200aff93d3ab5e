"""What this device reaches in bf16: matrix products, and causal attention forward and backward.

TFLOP/s. Causal attention counts half of all pairs; its backward counts 2.5 times its forward, the scores that a fused
kernel computes again included.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.benchmark import Measurement, Timer

from benchmarks.measured import Row, attempted, on_gpu, shape
from nemo_cdt.config import Model
from nemo_cdt.cost import flops

LENGTHS = (8192, 32768, 131072) if on_gpu() else (256,)
SQUARE = 8192 if on_gpu() else 256


class Attention(NamedTuple):
    call: Callable[..., torch.Tensor]
    layout: str  # of q, k and v: "bhsd" or "sbhd"


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    model = shape(arguments.layers)
    for name, (m, k, n) in products(model).items():
        yield {"what": name, "shape": f"{m}x{k}x{n}"} | attempted(matmul, m, k, n)
    for length in arguments.lengths or LENGTHS:
        for name, attention in attentions(model).items():
            row = {"what": f"attention, {name}", "seq_length": length}
            yield row | attempted(attend, model, length, attention)


def products(model: Model) -> dict[str, tuple[int, int, int]]:
    """Tokens x inputs x outputs of the model's linears, at as many tokens as the square has rows."""
    h, vocabulary = model.hidden_size, flops.vocabulary(model)
    widths = {
        "square": (SQUARE, SQUARE),
        "qkv": (h, model.query_size + 2 * model.key_size),
        "attention output": (model.query_size, h),
        "gate and up": (h, 2 * model.ffn_hidden_size),
        "down": (model.ffn_hidden_size, h),
        "head": (h, vocabulary),
    }
    return {name: (SQUARE, inputs, outputs) for name, (inputs, outputs) in widths.items()}


def matmul(m: int, k: int, n: int) -> Row:
    a, b = _random(m, k), _random(n, k)
    time = _time(lambda: a @ b.T)
    return {"tflops": 2 * m * k * n / time.median / 1e12, "relative_iqr": time.iqr / time.median}


def mfu(model: Any, seq_length: int, seconds: float, kind: str, labelled: float, ceiling: float) -> float:
    """The share of the ceiling that a ``plain`` or ``cdt`` step on one sequence reaches, with nothing counted twice."""
    once = flops.useful(model, seq_length, labelled=labelled)
    if kind == "cdt":
        once += flops.useful(model, seq_length, frozen=True, labelled=labelled)
    return once * seq_length / seconds / (ceiling * 1e12)


def peak() -> float:
    """The rate that MFU is measured against: of the square product, TFLOP/s."""
    return matmul(SQUARE, SQUARE, SQUARE)["tflops"]


def attentions(model: Model) -> dict[str, Attention]:
    found = {"SDPA flash": _sdpa(SDPBackend.FLASH_ATTENTION)}
    if on_gpu():
        found["SDPA cuDNN"] = _sdpa(SDPBackend.CUDNN_ATTENTION)
        try:
            found["Transformer Engine"] = _transformer_engine(model)
        except ImportError as error:
            print(f"without Transformer Engine: {error}", flush=True)
    return found


def attend(model: Model, length: int, attention: Attention) -> Row:
    heads, groups = model.num_attention_heads, model.num_query_groups
    sizes = {"b": 1, "s": length, "d": model.head_size}
    q, k, v = (
        _random(*((sizes | {"h": n})[axis] for axis in attention.layout)).requires_grad_()
        for n in (heads, groups, groups)
    )
    out_grad = torch.randn_like(attention.call(q, k, v))
    with torch.no_grad():
        forward = _time(lambda: attention.call(q, k, v))
    both = _time(lambda: torch.autograd.grad(attention.call(q, k, v), (q, k, v), out_grad))
    flops = 2 * model.hidden_size * length**2 / 1e12
    return {
        "forward_tflops": flops / forward.median,
        "backward_tflops": 2.5 * flops / (both.median - forward.median),
        "relative_iqr": both.iqr / both.median,
    }


def _sdpa(backend: SDPBackend) -> Attention:
    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    return Attention(call, "bhsd")


def _transformer_engine(model: Model) -> Attention:
    from transformer_engine.pytorch import DotProductAttention

    module = DotProductAttention(
        model.num_attention_heads,
        model.head_size,
        num_gqa_groups=model.num_query_groups,
        attn_mask_type="causal",
        qkv_format="sbhd",
        attention_dropout=0.0,
    )
    return Attention(module, "sbhd")


def _random(*size: int) -> torch.Tensor:
    return torch.randn(size, dtype=torch.bfloat16, device="cuda" if on_gpu() else "cpu")


def _time(call: Callable) -> Measurement:
    """As many repetitions as half a second holds."""
    return Timer("call()", globals={"call": call}).blocked_autorange(min_run_time=0.5 if on_gpu() else 0.01)
