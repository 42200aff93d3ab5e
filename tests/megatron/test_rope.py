"""RoPE's scalings equal those of transformers, for the models that have them and at the edges."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nemo_cdt.config import RopeScaling, RopeType
from nemo_cdt.megatron.rope import scaled, softmax_scale

YARN = RopeScaling(rope_type=RopeType.yarn, factor=4.0, original_max_position_embeddings=32768)
SCALINGS = {  # with the base and the size of a head
    "Llama-3.1": (500000.0, 128, RopeScaling()),
    "Llama-3.2": (500000.0, 64, RopeScaling(factor=32.0)),
    "Qwen": (1000000.0, 128, YARN),
    "Llama-3 to 64K": (500000.0, 128, replace(YARN, factor=8.0, original_max_position_embeddings=8192)),
    "another attention": (10000.0, 64, replace(YARN, attention_factor=1.5)),
    "other bounds": (10000.0, 64, replace(YARN, beta_fast=16.0, beta_slow=2.0)),
    "as short as it can be": (10000.0, 64, replace(YARN, original_max_position_embeddings=8)),
    "by nothing": (10000.0, 64, replace(YARN, factor=1.0)),
}


def plain(base: float, size: int) -> torch.Tensor:
    return 1.0 / base ** (torch.arange(0, size, 2).float() / size)


def of_transformers(base: float, size: int, scaling: RopeScaling) -> tuple[torch.Tensor, float]:
    """Rotations, and what queries and keys are multiplied by."""
    given = {name: getattr(scaling, name) for name in scaling.__slots__ if getattr(scaling, name) is not None}
    kind = str(given.pop("rope_type"))
    config = LlamaConfig(
        hidden_size=4 * size, num_attention_heads=4, rope_theta=base, rope_scaling={"rope_type": kind, **given}
    )
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))


@pytest.mark.parametrize("name", SCALINGS)
def test_rotations_and_attention_are_those_of_transformers(name):
    base, size, scaling = SCALINGS[name]
    expected, factor = of_transformers(base, size, scaling)

    torch.testing.assert_close(scaled(plain(base, size), base, scaling), expected, rtol=1e-6, atol=0)
    assert (softmax_scale(size, scaling) or size**-0.5) == pytest.approx(factor**2 / math.sqrt(size), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("Llama-3.1", {"low_freq_factor": 1.1}),
        ("Qwen", {"beta_fast": 24.0}),
        ("Qwen", {"original_max_position_embeddings": 16384}),
        ("Qwen", {"factor": 4.1}),
    ],
)
def test_another_number_would_be_seen(name, change):
    base, size, scaling = SCALINGS[name]
    expected, _ = of_transformers(base, size, scaling)

    assert not torch.allclose(scaled(plain(base, size), base, replace(scaling, **change)), expected, rtol=1e-3)
