"""Megatron's distributed optimizer over torch's own Adam, where neither Transformer Engine nor Apex is installed."""

from typing import Any

import torch
from torch import nn


def prepare(optimizer: Any) -> None:
    """Makes torch's Adam ready to be loaded, or saved before its first step; leaves others as they are."""
    for each in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(each.optimizer, torch.optim.Adam):
            _prepare(each)


def _prepare(megatron: Any) -> None:
    """Megatron loads the state of TE's and Apex's Adam; where neither is installed it fails on torch's.

    It expects its state to be there already, gives all parameters one ``step`` tensor, which would then count once for
    each of them, and looks for ``step`` among what was saved of a parameter, where it is not.
    """
    adam, set_state = megatron.optimizer, megatron._set_main_param_and_optimizer_states
    for parameter in (p for group in adam.param_groups for p in group["params"]):
        moments = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        adam.state[parameter] = {"step": torch.tensor(0.0), **moments}

    def set_state_with_step(model_parameter: nn.Parameter, saved: dict[str, torch.Tensor]) -> None:
        group, place = megatron.model_param_group_index_map[model_parameter]
        state = adam.state[adam.param_groups[group]["params"][place]]
        state["step"] = state["step"].clone()
        set_state(model_parameter, saved | {"step": state["step"]})

    megatron._set_main_param_and_optimizer_states = set_state_with_step
