"""Which activations a pass keeps and which its backward computes again; detection may differ from training."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.utils import get_model_config
from torch import nn

from nemo_cdt.config import Recompute

SETTINGS: dict[Recompute, dict[str, Any]] = {
    Recompute.none: {"recompute_granularity": None, "recompute_method": None, "recompute_num_layers": None},
    # The MLP holds 23 of a layer's 34 bytes a token and hidden unit; attention recomputes itself where it is fused.
    Recompute.selective: {
        "recompute_granularity": "selective",
        "recompute_method": None,
        "recompute_num_layers": None,
        "recompute_modules": ["mlp"],
    },
    Recompute.full: {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}
"""Megatron's settings of each policy."""


@contextmanager
def recomputing(chunks: list[nn.Module], policy: Recompute | None) -> Iterator[None]:
    """The forwards inside the block follow ``policy``; None leaves the model's own. Enclose their backwards too.

    Megatron reads the granularity at each forward, but copied ``mlp`` to the layers when it built them.
    """
    if policy is None:
        yield
        return
    with ExitStack() as undo:
        for config in {id(config): config for config in map(get_model_config, chunks)}.values():
            undo.enter_context(patch.multiple(config, **SETTINGS[policy]))
        for layer in (m for chunk in chunks for m in chunk.modules() if isinstance(m, TransformerLayer)):
            undo.enter_context(patch.object(layer, "recompute_mlp", policy is Recompute.selective))
        yield
