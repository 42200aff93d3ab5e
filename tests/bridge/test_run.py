"""A run on Megatron-Bridge stops, goes on, validates and fails as one on NeMo does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from nemo_cdt import config as c
from nemo_cdt.bridge import checkpoints
from tests import llama
from tests.bridge import jobs
from tests.ranks import on_ranks
from tests.runs import TINY, VOCABULARY, small_run, write_documents

TIMED = ("step_time", "tokens_per_second", "detection_time")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("runs")
    write_documents(found / "d.jsonl", kind="sft", count=60, shortest=44, longest=60, seed=1)
    llama.random_hugging_face(TINY, VOCABULARY).save_pretrained(found / "hf")
    return found


def run(folder: Path, name: str, *, steps: int = 4, devices: int = 1, **data: Any) -> c.Config:
    """Its learning rate does not depend on the number of its steps. Validates and saves every second one."""
    config = small_run(folder / name, folder / "d.jsonl", steps=steps, global_batch=4)
    config.optim = replace(config.optim, schedule=c.Schedule.constant)
    config.init.hf, config.export.hf = str(folder / "hf"), str(folder / name / "hf")
    config.trainer = replace(config.trainer, val_interval=2, checkpoint_interval=2, devices=devices)
    config.data = replace(config.data, **data)
    return config


DEALT = {"pack": True, "seq_length": 128, "document_length": 64}


@pytest.mark.parametrize(("name", "devices", "data"), [("one", 1, {}), ("two", 2, DEALT)])
def test_a_run_that_was_resumed_ends_as_one_that_was_not(name: str, devices: int, data: Any, folder: Path) -> None:
    on_ranks(jobs.train, devices, run(folder, f"{name}whole", devices=devices, **data))
    on_ranks(jobs.train, devices, run(folder, f"{name}cut", steps=2, devices=devices, **data))
    on_ranks(jobs.train, devices, replace(run(folder, f"{name}cut", devices=devices, **data), resume=True))

    whole, cut = (load_file(folder / f"{name}{each}/hf/model.safetensors") for each in ("whole", "cut"))
    for key in whole:
        np.testing.assert_array_equal(cut[key], whole[key], err_msg=key)
    rows = [jobs.metrics(folder / f"{name}{each}") for each in ("cut", "whole")]
    one, other = ([{k: v for k, v in row.items() if k not in TIMED} for row in each] for each in rows)
    assert one == other
    assert [row["step"] for row in one if "val_loss" in row] == [2, 4]


def test_a_run_goes_on_under_another_layout(folder: Path) -> None:
    on_ranks(jobs.train, 1, run(folder, "split", steps=2))
    other = replace(run(folder, "split", devices=2), resume=True, parallel=c.Parallel(tensor=2, sequence=True))
    on_ranks(jobs.train, 2, other)
    on_ranks(jobs.train, 1, run(folder, "unsplit"))

    found, expected = (load_file(folder / f"{name}/hf/model.safetensors") for name in ("split", "unsplit"))
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], atol=1e-5, err_msg=key)  # fp32


def test_sigterm_saves_and_the_run_goes_on(folder: Path) -> None:
    config = run(folder, "told", steps=40)
    [code] = on_ranks(jobs.train_and_be_told, 1, config, 3)

    assert code == 143
    assert checkpoints.steps_done(folder / "told/checkpoints") == 3
    assert not (folder / "told/hf").exists()


def test_a_loss_that_is_no_number_ends_the_run_in_a_line(folder: Path) -> None:
    config = run(folder, "mad")
    config.optim.lr = 1e30
    with pytest.raises(RuntimeError, match=r"TrainingFailedError: step 2: .*nan.* no checkpoint was saved before it"):
        on_ranks(jobs.train, 1, config)


def test_validation_is_that_of_hugging_face_on_the_rows_held_out(folder: Path) -> None:
    import torch

    config = run(folder, "validated", steps=2)
    config.optim.lr = config.optim.min_lr = 1e-12  # the weights stay
    on_ranks(jobs.train, 1, config)

    from nemo_cdt.data.split import load_documents
    from nemo_cdt.data.tokenizer import byte_tokenizer

    _, held_out = load_documents(config.data, byte_tokenizer(), seed=42, max_documents=8, vocab_size=VOCABULARY)
    model, losses = llama.loaded(folder / "hf"), []
    for index in range(len(held_out)):
        document = held_out[index]
        labels = torch.tensor(document.labels)[1:]
        logits = model(torch.tensor(document.input_ids)[None]).logits[0, :-1]
        losses += torch.nn.functional.cross_entropy(logits, labels, reduction="none")[labels != -100].tolist()
    [row] = [row for row in jobs.metrics(folder / "validated") if "val_loss" in row]
    assert row["val_loss"] == pytest.approx(float(np.mean(losses)), rel=1e-5)
