"""The weights in a checkpoint folder as one model has them: adapters merged into what they adapt."""

from pathlib import Path
from typing import Any

from torch import Tensor

from nemo_cdt.checkpoint import megatron_checkpoint
from nemo_cdt.checkpoint.megatron_checkpoint import SavedTensors
from nemo_cdt.checkpoint.weights import Shape, Weights, megatron_shapes, require
from nemo_cdt.config import Model, nemo_context
from nemo_cdt.utils.reading import entry, read_json


def base_of(checkpoint: Path) -> Path | None:
    """The checkpoint that a LoRA checkpoint adapts; None for one of whole weights.

    Raises:
        ValueError: where it is no longer there.
    """
    file = checkpoint / "weights/adapter_metadata.json"
    if not file.is_file():
        return None
    named = Path(entry(read_json(file), "model_ckpt_path", str, file))
    base = named.parent if named.name == "weights" else named
    if not (base / "weights").is_dir():
        raise ValueError(f"{checkpoint} adapts {base}, which is not there: say in {file} where it is now")
    return base


def read_merged(checkpoint: Path, model: Model) -> Weights:
    """As :func:`megatron_checkpoint.read_weights`; of a LoRA checkpoint W + alpha / rank * B A, in the precision of W.

    Raises:
        ValueError: also where the adapters are not those of its LoRA on this model, all of them and nothing else.
    """
    base = base_of(checkpoint)
    weights = megatron_checkpoint.read_weights(base or checkpoint, model)
    return _merged(weights, checkpoint, model) if base else weights


def _merged(weights: Weights, checkpoint: Path, model: Model) -> Weights:
    lora, adapters = _lora(checkpoint), SavedTensors(checkpoint)
    targets = [module for module in megatron_checkpoint.LINEAR if module.rpartition(".")[2] in lora["target_modules"]]
    expected = {name: shape for module in targets for name, shape in _shapes(module, lora["dim"], model).items()}
    require(adapters.shapes, expected, checkpoint)
    adapted = {f"decoder.layers.{layer}.{module}.weight" for module in targets for layer in range(model.num_layers)}

    def read(name: str) -> Tensor:
        weight = weights[name]
        if name not in adapted:
            return weight
        place = name.removesuffix("weight") + "adapter"
        a, b = (adapters.read(f"{place}.{linear}.weight").float() for linear in ("linear_in", "linear_out"))
        merged = weight.float()
        merged += lora["alpha"] / lora["dim"] * b @ a
        return weight.copy_(merged)

    return Weights(weights.like, read)


def _shapes(module: str, rank: int, model: Model) -> dict[str, Shape]:
    """Of A and B of all layers, as a checkpoint stacks them."""
    rows, columns = megatron_shapes(model)[f"decoder.layers.0.{module}.weight"]
    adapter = f"decoder.layers.{module}.adapter"
    return {
        f"{adapter}.linear_in.weight": (model.num_layers, rank, columns),
        f"{adapter}.linear_out.weight": (model.num_layers, rows, rank),
    }


def _lora(checkpoint: Path) -> dict[str, Any]:
    lora = nemo_context.read_context(checkpoint).get("model_transform") or {}
    if missing := [name for name in ("dim", "alpha", "target_modules") if name not in lora]:
        raise ValueError(f"{checkpoint}: its context/model.yaml has no {missing[0]} of a LoRA in model_transform")
    return dict(lora)
