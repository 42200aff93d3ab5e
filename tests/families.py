"""A tiny model of each family, with what sets it apart; the same for the runs and the conversions."""

from dataclasses import replace

from nemo_cdt.config import Family, Model, RopeScaling, RopeType
from tests.runs import TINY

PLAIN = RopeScaling(rope_type=RopeType.none)
WINDOW = 16  # of 64 positions

FAMILIES: dict[str, Model] = {
    "qwen2": replace(
        TINY, family=Family.qwen2, qkv_bias=True, rotary_base=1e6, rope_scaling=PLAIN, norm_epsilon=1e-6
    ),
    "qwen3": replace(
        TINY, family=Family.qwen3, qk_norm=True, head_dim=24, rotary_base=1e6, rope_scaling=PLAIN, norm_epsilon=1e-6
    ),
    "mistral": replace(
        TINY, family=Family.mistral, sliding_window=WINDOW, rotary_base=1e4, rope_scaling=PLAIN
    ),
    "tied llama": replace(TINY, tied_embeddings=True),
    "yarn llama": replace(
        TINY,
        rope_scaling=RopeScaling(rope_type=RopeType.yarn, factor=4.0, original_max_position_embeddings=16),
        rotary_base=1e4,
    ),
}  # fmt: skip
