"""Checkpoints of LoRA: adapters alone, that go on as if nothing had happened and become a Hugging Face model."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemo_cdt.checkpoint.merge import base_of
from nemo_cdt.config import Config, Init, Lora, Parallel, Resharding
from nemo_cdt.nemo.convert import convert
from tests.families import PLAIN
from tests.jobs import tensors
from tests.nemo.test_convert import SMALL_RUN, change_context, expected_logits, one_rank, weights, write_llama
from tests.nemo.test_resume import constant
from tests.resuming import assert_same, checkpoints, metrics, train
from tests.runs import TINY, write_documents

LLAMA = SMALL_RUN | {"vocab_size": 264, "rope_scaling": None}
TOKENS = torch.arange(128)[None] * 37 % 264


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face Llama, and documents."""
    folder = tmp_path_factory.mktemp("start")
    write_llama(folder / "hf", **LLAMA)
    write_documents(folder / "d.jsonl", kind="sft", count=40, longest=60)
    return folder


def run(folder: Path, start: Path, parallel: Parallel | None = None, **changes: Any) -> Config:
    config = constant(folder, start / "d.jsonl", parallel=parallel or Parallel(), **changes)
    config.model = replace(TINY, vocab_size=None, rope_scaling=PLAIN)
    config.init, config.lora = Init(hf=str(start / "hf")), Lora(rank=8, alpha=16)
    config.optim.lr = 1e-2  # so that adapters soon matter
    return config


@pytest.fixture(scope="module")
def uninterrupted(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(run(folder, start))
    return folder


def test_a_checkpoint_holds_adapters_and_their_optimizer_alone(uninterrupted: Path) -> None:
    assert checkpoints(uninterrupted) == {"step=4", "step=6", "last", "best"}
    assert os.readlink(uninterrupted / "checkpoints/last") == "step=6"
    found = tensors(uninterrupted / "checkpoints/last")
    weights = {name: tensor for name, tensor in found.items() if name.startswith("module.")}
    assert all(".adapter." in name for name in weights)
    assert len(weights) == 2 * len(Lora().targets)
    trained = sum(tensor.size for tensor in weights.values())
    assert {tensor.size for name, tensor in found.items() if name not in weights} == {trained}
    assert base_of(uninterrupted / "checkpoints/last") == uninterrupted / "init"


def test_a_run_goes_on_bit_for_bit_though_its_folder_was_moved(
    start: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    train(run(tmp_path / "before", start, steps=3))
    (tmp_path / "before").rename(tmp_path / "run")
    train(run(tmp_path / "run", start, resume=True))
    assert_same(tmp_path / "run", uninterrupted)
    assert base_of(tmp_path / "run/checkpoints/step=6") == tmp_path / "run/init"


@pytest.mark.parametrize("parallel", [Parallel(tensor=2, sequence=True), Parallel(pipeline=2)], ids=["TP2SP", "PP2"])
def test_a_run_goes_on_under_other_layouts(
    parallel: Parallel, start: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    begun = run(tmp_path / "run", start, steps=4)
    resumed = run(tmp_path / "run", start, parallel, devices=2, resume=True)
    for config in (begun, resumed):
        config.trainer.checkpoint_resharding = Resharding.full
        train(config)
    for ours, theirs in zip(metrics(tmp_path / "run"), metrics(uninterrupted), strict=True):
        assert ours["step"] == theirs["step"]
        assert ours.get("loss") == pytest.approx(theirs.get("loss"), abs=1e-5)
    found, expected = (tensors(folder / "checkpoints/step=6") for folder in (tmp_path / "run", uninterrupted))
    for name in (each for each in expected if each.startswith("module.")):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


@torch.no_grad()
def adapted_logits(checkpoint: Path) -> torch.Tensor:
    """Of NeMo's model beside its adapters, both as the checkpoint's own context describes them."""
    with one_rank():
        from megatron.core import dist_checkpointing
        from nemo.collections.llm.fn.base import walk
        from nemo.lightning.io import load_context

        def load(llama: Any, folder: Path, kind: str) -> None:
            wanted = {k: v for k, v in llama.sharded_state_dict(prefix="module.").items() if kind in k}
            loaded = dist_checkpointing.load(wanted, str(folder / "weights"))
            llama.load_state_dict({k.removeprefix("module."): v for k, v in loaded.items()}, strict=not kind)

        model = load_context(checkpoint / "context", subpath="model")
        llama = model.config.configure_model(tokenizer=None)
        load(llama, base_of(checkpoint), "")
        walk(llama, model.model_transform.transform)
        load(llama, checkpoint, ".adapter.")
        return llama(TOKENS, torch.arange(TOKENS.size(1))[None], None)


def test_an_export_computes_what_the_adapted_model_computes(start: Path, uninterrupted: Path, tmp_path: Path) -> None:
    checkpoint = uninterrupted / "checkpoints/step=6"
    convert(checkpoint, tmp_path / "hf")
    expected = adapted_logits(checkpoint)
    torch.testing.assert_close(expected_logits(tmp_path / "hf", TOKENS), expected, atol=1e-5, rtol=0)
    assert (expected - expected_logits(start / "hf", TOKENS)).abs().max() > 1e-2
    assert (tmp_path / "hf/tokenizer.json").exists()

    shutil.copytree(checkpoint, tmp_path / "step=6")
    change_context(tmp_path / "step=6", "  alpha: 16\n", "  alpha: 17\n")
    convert(tmp_path / "step=6", tmp_path / "wrong")
    assert (expected - expected_logits(tmp_path / "wrong", TOKENS)).abs().max() > 1e-3


def test_merged_weights_keep_the_precision_of_what_is_adapted(uninterrupted: Path, tmp_path: Path) -> None:
    write_llama(tmp_path / "bf16", torch.bfloat16, **LLAMA)
    convert(tmp_path / "bf16", tmp_path / "nemo")
    shutil.copytree(uninterrupted / "checkpoints/step=6", tmp_path / "step=6")
    (tmp_path / "step=6/weights/adapter_metadata.json").write_text(json.dumps({"model_ckpt_path": f"{tmp_path}/nemo"}))
    convert(tmp_path / "step=6", tmp_path / "hf")

    found, before = weights(tmp_path / "hf"), weights(tmp_path / "bf16")
    assert all(weight.dtype is torch.bfloat16 for weight in found.values())
    adapters = tensors(tmp_path / "step=6")
    place = "module.decoder.layers.self_attention.linear_proj.adapter"
    a, b = (torch.tensor(adapters[f"{place}.{name}.weight"][1]) for name in ("linear_in", "linear_out"))
    name = "model.layers.1.self_attn.o_proj.weight"
    assert torch.equal(found[name], (before[name].float() + 16 / 8 * b @ a).bfloat16())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  dim: 8\n", "  dim: 4\n", r"linear_in\.weight is \(2, 8, 64\) and not \(2, 4, 64\)"),
        ("  - linear_proj\n", "", r"linear_proj\.adapter\.\S+ is no weight of this model"),
        ("model_transform:", "transform:", r"context/model\.yaml has no dim of a LoRA"),
    ],
)
def test_adapters_that_do_not_fit_leave_nothing_behind(
    old: str, new: str, message: str, uninterrupted: Path, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted / "checkpoints/step=6", tmp_path / "step=6")
    change_context(tmp_path / "step=6", old, new)
    with pytest.raises(ValueError, match=f"/step=6: .*{message}"):
        convert(tmp_path / "step=6", tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["step=6"]


def test_adapters_whose_base_is_gone_are_refused(uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted / "checkpoints/step=6", tmp_path / "step=6")
    file = tmp_path / "step=6/weights/adapter_metadata.json"
    file.write_text('{"model_ckpt_path": "/not/there"}')
    with pytest.raises(ValueError, match=f"step=6 adapts /not/there, which is not there: say in {file} where it is"):
        convert(tmp_path / "step=6", tmp_path / "hf")
