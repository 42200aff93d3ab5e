"""Tiny models of four architectures, random but with sharp attention, and the textbook's information flow of them."""

from copy import deepcopy

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from nemo_cdt.analysis import attention
from nemo_cdt.analysis.analyzed_model import AnalyzedModel

VOCABULARY = 300
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "mistral": MistralConfig(**SIZES, sliding_window=12),
}


def eager(name: str) -> PreTrainedModel:
    """With transformers' own attention, which makes whole matrices."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[name]), attn_implementation="eager").float().eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith(("bias", "norm.weight")):  # zeros and ones would hide a mistake
                weight.add_(0.3 * torch.randn_like(weight))
    return model


def watched(name: str) -> AnalyzedModel:
    """The same weights, as an analysis loads them."""
    model = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[name]), attn_implementation=attention.NAME)
    model.load_state_dict(eager(name).state_dict())
    return AnalyzedModel(model)


def textbook(name: str, ids_N: Tensor, rows_R: Tensor, answer_R: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(attention, its gradient: both [L, H, R, N], the embedding's gradient [N, D], the loss), all by autograd."""
    model = eager(name)
    embedding = model.get_input_embeddings()(ids_N).detach().requires_grad_(True)
    out = model(inputs_embeds=embedding[None], output_attentions=True, use_cache=False)
    for matrix in out.attentions:
        matrix.retain_grad()
    loss = cross_entropy(out.logits[0, rows_R], answer_R)
    loss.backward()
    attention_LHRN = torch.stack([matrix.detach()[0][:, rows_R] for matrix in out.attentions])
    slope_LHRN = torch.stack([matrix.grad[0][:, rows_R] for matrix in out.attentions])
    return attention_LHRN, slope_LHRN, embedding.grad, loss.detach()
