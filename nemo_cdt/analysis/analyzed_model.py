"""The model that is analysed: a Hugging Face folder's, or a run's, frozen, and attending so that it can be watched."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_layers import GradientCheckpointingLayer

from nemo_cdt.analysis import attention
from nemo_cdt.analysis.attention import Watch
from nemo_cdt.checkpoint import pretrained
from nemo_cdt.checkpoint.convert import export_huggingface
from nemo_cdt.checkpoint.steps import finished_checkpoints
from nemo_cdt.config import Accelerator, Precision
from nemo_cdt.data.tokenizer import load_tokenizer
from nemo_cdt.utils.reading import blamed_on

DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp32: torch.float32}


class AnalyzedModel:
    """A causal language model whose weights are frozen and whose layers are recomputed in the backward pass."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)
        layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if len(layers) != self.layers or not model._supports_attention_backend:
            raise ValueError(f"{type(model).__name__} is not a stack of plain decoder layers; {attention.KNOWN}")
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        for layer in layers:
            layer.training = True  # transformers recomputes only what trains; what is inside stays without dropout

    @property
    def layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def heads(self) -> int:
        return int(self.model.config.num_attention_heads)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def embed(self, input_ids: Any) -> Tensor:
        """E, [N, D], detached."""
        ids = torch.as_tensor(input_ids, device=self.device)
        return self.model.get_input_embeddings()(ids).detach()

    def logits(self, embedding_ND: Tensor, rows_R: Tensor, watch: Watch | None = None) -> Tensor:
        """fp32 [R, V]: the head is computed at ``rows_R`` alone.

        Raises:
            ValueError: where ``watch`` does not reach every layer once.
        """
        watched = {} if watch is None else {"watch": watch}
        out = self.model(inputs_embeds=embedding_ND[None], logits_to_keep=rows_R, use_cache=False, **watched)
        return out.logits[0].float()

    def log_probabilities(self, ids_BN: Tensor, last: int) -> Tensor:
        """Of each of the last ``last`` tokens of a row, given those before it in the row: fp32 [B, last]."""
        hidden_BND = self.model.base_model(input_ids=ids_BN[:, :-1], use_cache=False).last_hidden_state
        hidden_MD, targets_M = hidden_BND[:, -last:].flatten(0, 1), ids_BN[:, -last:].flatten()
        parts = zip(hidden_MD.split(1024), targets_M.split(1024), strict=True)
        head = self.model.get_output_embeddings()
        nll_M = torch.cat([cross_entropy(head(h).float(), targets, reduction="none") for h, targets in parts])
        return -nll_M.view(len(ids_BN), last)

    def require_plain_head(self) -> None:
        """:meth:`log_probabilities` computes logits as a linear layer of the last hidden state: true of this model?"""
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
            raise ValueError(f"{type(self.model).__name__} scales or caps its logits; {attention.KNOWN}")


def choose_device(accelerator: Accelerator) -> torch.device:
    """A GPU where there is one, unless told otherwise."""
    if accelerator is Accelerator.gpu and not torch.cuda.is_available():
        raise ValueError("device=gpu, but torch sees no GPU here: set device=cpu or device=auto")
    return torch.device("cuda" if accelerator is not Accelerator.cpu and torch.cuda.is_available() else "cpu")


def read_config(folder: Path) -> PretrainedConfig:
    """Raises ValueError where ``folder`` holds no model that transformers knows."""
    with blamed_on(folder, "it is no Hugging Face model", whatever=True):
        pretrained.read_config(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    # Transformers 5 writes rope_parameters, which version 4 passes over in silence: another RoPE.
    rope = getattr(config, "rope_parameters", None)
    if rope is not None and not hasattr(type(config), "rope_parameters"):
        if not isinstance(rope, dict) or "rope_theta" not in rope:
            raise ValueError(f"{folder}: its rope_parameters are not those of one kind of layer; {attention.KNOWN}")
        config.rope_theta = rope["rope_theta"]
        config.rope_scaling = None if rope.get("rope_type", "default") == "default" else rope
    return config


def load(folder: Path, config: PretrainedConfig, precision: Precision, device: torch.device) -> AnalyzedModel:
    """Reads safetensors only, and no code of the folder's.

    Raises:
        ValueError: where a weight is missing, or the architecture's attention cannot be watched.
    """
    pretrained.weight_files(folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[precision],
            attn_implementation=attention.NAME,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # of whatever the files hold
        raise ValueError(f"{folder} cannot be analysed: {_brief(error)}; {attention.KNOWN}") from error
    model, found = loaded
    wrong = [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]
    if wrong:
        raise ValueError(f"{folder}: its weights lack {wrong[0]}, or have it in another shape")
    return AnalyzedModel(model.to(device))


def read_tokenizer(folder: Path, name: str | None) -> PreTrainedTokenizerFast | None:
    """The one that is named, else the model's own, else None."""
    if name is None and not (folder / "tokenizer_config.json").is_file():
        return None
    try:
        return load_tokenizer(name or str(folder))
    except ValueError as error:
        raise ValueError(str(error).removeprefix("model.")) from error  # here the key is tokenizer


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The Hugging Face folder of a model: ``path`` itself, or a run's last checkpoint, converted for as long as needed.

    Raises:
        ValueError: where ``path`` is neither, or a run without a checkpoint.
    """
    if (path / "config.json").is_file():
        yield path
        return
    checkpoint = path if (path / "weights").is_dir() else checkpoints(path)[-1]
    with TemporaryDirectory() as made:
        folder = Path(made, "hf")
        folder.mkdir()
        try:
            export_huggingface(checkpoint, folder)
        except ValueError as error:
            raise ValueError(f"{checkpoint} cannot be converted: {error}") from error
        yield folder


def checkpoints(run: Path) -> list[Path]:
    """The finished checkpoints of a run of ours, by their steps.

    Raises:
        ValueError: where there is none.
    """
    found = finished_checkpoints(run / "checkpoints")
    if not found and (run / "config.json").is_file():
        raise ValueError(f"model={run} is a Hugging Face folder: this measure follows a run, give the run's output")
    if not found:
        raise ValueError(
            f"model={run} is no Hugging Face folder (no config.json) and no run with a finished checkpoint"
        )
    return found


def _brief(error: Exception) -> str:
    return shorten(" ".join(str(error).split()), width=160, placeholder=" ...")
