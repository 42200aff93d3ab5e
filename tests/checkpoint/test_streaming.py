"""Conversions: what they write is what Megatron would, to the byte, and little of it is in memory at once."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import Tensor

from nemo_cdt.checkpoint.weights import to_megatron
from nemo_cdt.config import Model
from nemo_cdt.nemo.convert import convert
from nemo_cdt.utils.cpu import cuda_on_cpu
from tests.families import FAMILIES
from tests.llama import random_hugging_face
from tests.nemo.test_convert import one_rank, same, weights, write_family
from tests.ranks import on_ranks
from tests.runs import TINY

LARGE = replace(TINY, num_layers=24, hidden_size=256, ffn_hidden_size=2048)
SHARD = 16 << 20


def sharded(weights: Mapping[str, Tensor], model: Model) -> dict[str, Any]:
    """As a model of Megatron's hands over its weights, and Transformer Engine its states."""
    from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor

    found: dict[str, Any] = {}
    for name, tensor in weights.items():
        before, _, inner = name.partition("layers.")
        number, _, key = inner.partition(".")
        of_layer = {"prepend_axis_num": 1} if inner else {}
        offsets = [(0, int(number), model.num_layers)] if inner else []
        where = f"module.{before}layers.{key}" if inner else f"module.{name}"
        found[name] = ShardedTensor.from_rank_offsets(where, tensor, *offsets, **of_layer)
    norms = ["q_layernorm", "k_layernorm"] if model.qk_norm else []
    modules = [f"self_attention.{name}" for name in ("linear_qkv", "linear_proj", *norms)]
    for module in [*modules, "mlp.linear_fc1", "mlp.linear_fc2"]:
        for layer in range(model.num_layers):
            where = f"module.decoder.layers.{module}._extra_state"
            found[f"{module}{layer}"] = ShardedObject(where, empty(), (model.num_layers,), (layer,))
    found["last"] = ShardedObject("module.decoder.final_layernorm._extra_state", empty(), (1,), (0,))
    return found


def empty() -> Tensor:
    return torch.empty(0, dtype=torch.uint8)


def stored(folder: Path) -> tuple[dict, dict]:
    """What a checkpoint says of its tensors, and the bytes of each part of one."""
    metadata = dcp.FileSystemReader(folder).read_metadata()
    places = metadata.storage_data.items()
    data = {i: (folder / p.relative_path).read_bytes()[p.offset : p.offset + p.length] for i, p in places}
    return metadata.state_dict_metadata, data


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_holds_the_bytes_that_megatron_writes(name: str, tmp_path: Path) -> None:
    model = replace(FAMILIES[name], vocab_size=263)
    write_family(tmp_path / "hf", model, torch.bfloat16)
    convert(tmp_path / "hf", tmp_path / "nemo")
    (tmp_path / "weights").mkdir()
    with one_rank():
        from megatron.core import dist_checkpointing

        expected = to_megatron(weights(tmp_path / "hf"), model)
        dist_checkpointing.save(sharded(expected, model), str(tmp_path / "weights"))

    assert stored(tmp_path / "nemo/weights") == stored(tmp_path / "weights")
    for file in ("common.pt", "metadata.json"):
        assert (tmp_path / "nemo/weights" / file).read_bytes() == (tmp_path / "weights" / file).read_bytes()


def in_small_shards() -> None:
    from nemo_cdt.checkpoint import huggingface

    split = huggingface.split_torch_state_dict_into_shards
    huggingface.split_torch_state_dict_into_shards = partial(split, max_shard_size=SHARD)


def held(module: Any) -> None:
    """Its ``read_weights`` reads them all at once."""
    right = module.read_weights
    module.read_weights = lambda *where: {name: tensor.clone() for name, tensor in right(*where).items()}


def peak(source: Path, destination: Path, whole: bool) -> int:
    """The bytes that a conversion adds to the memory of a process."""
    with cuda_on_cpu():
        from nemo_cdt.checkpoint import huggingface, megatron_checkpoint

        convert(source.parent / "small", source.parent / f"imported_{destination.name}")
    in_small_shards()
    if whole:
        held(huggingface)
        held(megatron_checkpoint)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    convert(source, destination)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) << 10


def every(folder: Path) -> dict[str, Tensor]:
    return {n: tensor for file in sorted(folder.glob("*.safetensors")) for n, tensor in load_file(file).items()}


def test_a_conversion_holds_few_tensors_and_one_back_few_files(tmp_path: Path) -> None:
    write_family(tmp_path / "small", replace(TINY, vocab_size=263))
    random_hugging_face(LARGE, 263).save_pretrained(tmp_path / "hf", max_shard_size=SHARD)
    expected = every(tmp_path / "hf")
    size = sum(tensor.nbytes for tensor in expected.values())

    def part(source: str, destination: str, whole: bool = False) -> float:
        return on_ranks(peak, 1, tmp_path / source, tmp_path / destination, whole)[0] / size

    assert part("hf", "nemo") < 0.5 < 0.9 < part("hf", "nemo_2", whole=True)
    assert part("nemo", "back") < 0.5 < 0.9 < part("nemo", "back_2", whole=True)
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 10
    assert same(every(tmp_path / "back"), expected)
    index = json.loads((tmp_path / "back/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == expected.keys()
