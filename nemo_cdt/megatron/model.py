"""Megatron's classes that become ours: NeMo names Megatron's where it builds a model, so they change afterwards."""

from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.mlp import MLP

from nemo_cdt.megatron.cross_entropy import LabelledGPTModel
from nemo_cdt.megatron.mlp import ChunkedMLP


def adopt(model: GPTModel) -> None:
    """Gives a model the head at labelled positions and, where its config has several MLP chunks, chunked MLPs.

    Neither has anything of its own to initialise, and parameters keep their names.
    """
    assert type(model) is GPTModel, f"{type(model)} has a forward of its own"
    model.__class__ = LabelledGPTModel
    if model.config.mlp_chunks_for_prefill > 1:
        for module in model.modules():
            if type(module) is MLP:
                module.__class__ = ChunkedMLP
