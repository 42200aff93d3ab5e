"""The model that is analysed: a Hugging Face folder's, or a run's, frozen, and attending so that it can be watched."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_layers import GradientCheckpointingLayer

from nemo_cdt.analysis import attention
from nemo_cdt.analysis.attention import Watch
from nemo_cdt.checkpoint.convert import export_huggingface
from nemo_cdt.checkpoint.steps import finished_checkpoints
from nemo_cdt.config import Accelerator, Precision
from nemo_cdt.data.tokenizer import load_tokenizer
from nemo_cdt.evaluation.model import EvaluatedModel, read_model


class AnalyzedModel(EvaluatedModel):
    """A causal language model whose weights are frozen and whose layers are recomputed in the backward pass."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
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


def choose_device(accelerator: Accelerator) -> torch.device:
    """A GPU where there is one, unless told otherwise."""
    if accelerator is Accelerator.gpu and not torch.cuda.is_available():
        raise ValueError("device=gpu, but torch sees no GPU here: set device=cpu or device=auto")
    return torch.device("cuda" if accelerator is not Accelerator.cpu and torch.cuda.is_available() else "cpu")


def load(folder: Path, config: PretrainedConfig, precision: Precision, device: torch.device) -> AnalyzedModel:
    """Reads safetensors only, and no code of the folder's.

    Raises:
        ValueError: where a weight is missing, or the architecture's attention cannot be watched.
    """
    return AnalyzedModel(read_model(folder, config, precision, attention.NAME).to(device))


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
