"""A Hugging Face folder's causal language model, frozen, to be asked for the probabilities of tokens."""

from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from nemo_cdt.checkpoint import pretrained
from nemo_cdt.config import Precision, huggingface
from nemo_cdt.utils.reading import blamed_on

DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp32: torch.float32}


class EvaluatedModel:
    """A causal language model whose weights are frozen.

    Attributes:
        model: of transformers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def log_probabilities(self, ids_BN: Tensor, last: int) -> Tensor:
        """Of each of the last ``last`` tokens of a row, given those before it in the row: fp32 [B, last]."""
        hidden_BND = self.model.base_model(input_ids=ids_BN[:, :-1], use_cache=False).last_hidden_state
        hidden_MD, targets_M = hidden_BND[:, -last:].flatten(0, 1), ids_BN[:, -last:].flatten()
        parts = zip(hidden_MD.split(1024), targets_M.split(1024), strict=True)
        head = self.model.get_output_embeddings()
        nll_M = torch.cat([cross_entropy(head(h).float(), targets, reduction="none") for h, targets in parts])
        return -nll_M.view(len(ids_BN), last)

    def require_plain_head(self) -> None:
        """:meth:`log_probabilities` computes logits as a linear layer of the last hidden state.

        Raises:
            ValueError: where that is not so of this model.
        """
        ids = torch.arange(4, device=self.device)[None]
        with torch.no_grad():
            hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            same = torch.allclose(
                self.model.get_output_embeddings()(hidden).float(),
                self.model(input_ids=ids, use_cache=False).logits.float(),
                rtol=1e-2,
                atol=1e-2,
            )
        if not same:
            raise ValueError(
                f"{type(self.model).__name__} scales or caps its logits, so that its probabilities are not known here: "
                "take a Llama, Qwen2, Qwen3 or Mistral"
            )


def read_config(folder: Path) -> PretrainedConfig:
    """Raises ValueError where ``folder`` holds no model that transformers knows."""
    with blamed_on(folder, "it is no Hugging Face model", whatever=True):
        huggingface.read_config(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    # Transformers 5 writes rope_parameters, which version 4 passes over in silence: another RoPE.
    rope = getattr(config, "rope_parameters", None)
    if rope is not None and not hasattr(type(config), "rope_parameters"):
        if not isinstance(rope, dict) or "rope_theta" not in rope:
            raise ValueError(f"{folder}: its rope_parameters are not those of one kind of layer")
        config.rope_theta = rope["rope_theta"]
        config.rope_scaling = None if rope.get("rope_type", "default") == "default" else rope
    return config


def read_model(folder: Path, config: PretrainedConfig, precision: Precision, attention: str = "sdpa") -> Any:
    """Reads safetensors only, and no code of the folder's.

    Args:
        folder: that of the weights.
        config: what :func:`read_config` made of it.
        precision: of the weights in memory.
        attention: which of the functions that transformers has registered.

    Returns:
        A ``PreTrainedModel``, on the CPU.

    Raises:
        ValueError: where a weight is missing, or transformers does not know the architecture.
    """
    pretrained.weight_files(folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[precision],
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # of whatever the files hold
        reason = shorten(" ".join(str(error).split()), width=160, placeholder=" ...")
        raise ValueError(f"{folder} cannot be loaded: {reason}") from error
    model, found = loaded
    wrong = [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]
    if wrong:
        raise ValueError(f"{folder}: its weights lack {wrong[0]}, or have it in another shape")
    return model
