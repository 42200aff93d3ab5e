"""What NeMo keeps beside a checkpoint's weights: what model they are of."""

import tempfile
from pathlib import Path

import torch
from nemo.collections.common.tokenizers import AutoTokenizer
from nemo.lightning.io.pl import TrainerContext

from nemo_cdt.checkpoint.huggingface import copy_tokenizer, has_tokenizer
from nemo_cdt.config import Config, Model
from nemo_cdt.nemo.model import CDTModel, nemo_config


def write_context(folder: Path, model: Model, tokenizer: Path) -> None:
    """``context/`` of a NeMo checkpoint: the model's configuration, and the tokenizer where there is one."""
    config = nemo_config(Config(model=model), vocab_size=model.vocab_size or 0, on_gpu=torch.cuda.is_available())
    with tempfile.TemporaryDirectory() as made:
        copy = Path(made) / "tokenizer"  # NeMo copies the whole folder, and under its name
        copy_tokenizer(tokenizer, copy)
        nemo_tokenizer = AutoTokenizer(str(copy), use_fast=True) if has_tokenizer(copy) else None
        nemo_model = CDTModel(config, tokenizer=nemo_tokenizer)
        TrainerContext(model=nemo_model, trainer=None, extra={}).io_dump(folder, yaml_attrs=["model"])
