"""From the published formats to training steps, through `nemo-cdt prepare`."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from benchmarks.runs import composed
from nemo_cdt.config import Config, Data, DataName, Parallel, Schedule
from nemo_cdt.megatron.indexed import IndexedDocuments
from nemo_cdt.prepare.request import read
from nemo_cdt.prepare.write import prepare
from nemo_cdt.validation import validate
from tests import jobs, resuming
from tests.data.conftest import bpe_folder  # noqa: F401
from tests.llama import loaded, random_hugging_face
from tests.prepare.conftest import write_books, write_longalpaca, write_longmit
from tests.ranks import on_ranks
from tests.runs import TINY, small_run

VOCABULARY = 2048
"""Of the weights: the tokenizer's 2,000, padded."""
SEQ_LENGTH, BOOKS = 64, 20


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, bpe_folder) -> dict[str, Path]:  # noqa: F811
    folder = tmp_path_factory.mktemp("prepared")
    write_books(folder / "hub")
    write_longmit(folder / "longmit.jsonl", longest=40)
    write_longalpaca(folder / "alpaca.json")
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It is Mary of course."}]
    rows = [{"messages": chat}, {"text": "The object was called, and another was not."}] * 5
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    some = {"longmit": ["samples=20", "validation_samples=4", "min_tokens=50"], "longalpaca": ["samples=8"]}
    some["longalpaca"] += some["longmit"][1:]
    files = {"longmit": folder / "longmit.jsonl", "longalpaca": folder / "alpaca.json"}
    mixed = [f"{name}.{key}" for name, file in files.items() for key in [f"input={file}", *some[name]]]
    asked = {
        "pg19": [f"input={folder}/hub", f"seq_length={SEQ_LENGTH}", f"samples={BOOKS}", "validation_samples=4"],
        **{name: [f"input={file}", *some[name]] for name, file in files.items()},
        "alignment": mixed,
        "jsonl": [f"input={folder}/mine.jsonl", "validation_samples=4"],
    }
    for name, overrides in asked.items():
        command = [*overrides, f"output={folder}/{name}", f"tokenizer={bpe_folder}"]
        prepare(name, read(name, command), "")
    return {name: folder / name for name in asked}


def run(output: Path, data: Data, tokenizer: Path, steps: int = 2) -> Config:
    model = replace(TINY, vocab_size=None, tokenizer=str(tokenizer))
    config = small_run(output, output, steps=steps, model=model, data=data)
    config.trainer.val_interval, config.optim.schedule = steps, Schedule.constant
    return config


def of(folder: Path, **settings) -> Data:
    return Data(name=DataName.prepared, path=str(folder), seq_length=1024, validation_samples=4, **settings)


def as_rows(folder: Path, file: Path) -> str:
    """The same documents for data=jsonl."""
    documents = IndexedDocuments(folder)
    with file.open("w") as stream:
        for number in range(len(documents)):
            document = documents[number]
            row = {"input_ids": document.input_ids.tolist(), "labels": document.labels.tolist()}
            stream.write(json.dumps(row) + "\n")
    return str(file)


def test_prepared_rows_train_as_the_same_rows_of_a_jsonl_file_do(prepared, bpe_folder, tmp_path):  # noqa: F811
    configs = {}
    for name, pack in (("alignment", True), ("longmit", True), ("longalpaca", False), ("jsonl", False)):
        data = of(prepared[name], pack=pack)
        same = replace(
            data,
            name=DataName.jsonl,
            path=as_rows(prepared[name] / "train", tmp_path / f"{name}.jsonl"),
            validation_path=as_rows(prepared[name] / "validation", tmp_path / f"{name}-validation.jsonl"),
        )
        configs[name] = run(tmp_path / name, data, bpe_folder)
        configs[f"{name} again"] = run(tmp_path / f"{name}-again", same, bpe_folder)
        if name == "longmit":  # one comparison is enough
            del configs["longmit again"]
    for config in configs.values():
        validate(config)

    results = dict(zip(configs, on_ranks(jobs.train_all, 1, *configs.values())[0], strict=True))

    for name in ("alignment", "longalpaca", "jsonl"):
        found, expected = results[name], results[f"{name} again"]
        assert found["losses"] == expected["losses"]
        assert np.isfinite(found["losses"]).all()
        rows, again = (resuming.metrics(Path(configs[which].output)) for which in (name, f"{name} again"))
        assert rows == again
        assert any("val_loss" in row for row in rows)
        for key, weight in expected["final"].items():
            np.testing.assert_array_equal(found["final"][key], weight)
    packed = [detection["documents"].max() for detection in results["alignment"]["detections"]]
    assert max(packed) > 0
    assert results["alignment"]["losses"] != results["longmit"]["losses"]


def seen(result) -> list[tuple]:
    """The tokens that were fed, in the order of the run."""
    rows = sorted(result["detections"], key=lambda found: (found["step"], found["row"]))
    return [tuple(row["tokens"].tolist()) for row in rows]


def test_books_are_fed_whole_through_nemos_data_module_and_in_the_same_order_after_a_resume(
    prepared,
    bpe_folder,  # noqa: F811
    tmp_path,
):
    data = books(prepared)
    whole, half = run(tmp_path / "whole", data, bpe_folder, steps=4), run(tmp_path / "half", data, bpe_folder)
    rest = replace(run(tmp_path / "half", data, bpe_folder, steps=4), resume=True)
    validate(whole)

    straight, first, second = on_ranks(jobs.train_all, 1, whole, half, rest)[0]

    documents = IndexedDocuments(prepared["pg19"] / "train")
    expected = {tuple(documents[number].input_ids[:-1].tolist()) for number in range(BOOKS)}
    assert len(expected) == BOOKS
    assert len({*seen(straight)}) == 16
    assert {*seen(straight)} <= expected
    assert seen(first) + seen(second) == seen(straight)
    assert any(np.isfinite(row.get("val_loss", np.nan)) for row in resuming.metrics(Path(whole.output)))
    assert (straight["losses"][:2], straight["losses"][2:]) == (first["losses"], second["losses"])


def test_two_data_parallel_ranks_share_the_books_of_one(prepared, bpe_folder, tmp_path):  # noqa: F811
    config = run(tmp_path / "two", books(prepared), bpe_folder)
    config.trainer.devices = 2

    ranks = [{*seen(result)} for result in on_ranks(jobs.train, 2, config)]

    assert [len(rank) for rank in ranks] == [4, 4]
    assert not ranks[0] & ranks[1]


@pytest.fixture(scope="module")
def weights(bpe_folder, tmp_path_factory):  # noqa: F811
    """A checkpoint to start from: random weights depend on the layout."""
    folder = tmp_path_factory.mktemp("weights") / "hf"
    shutil.copytree(bpe_folder, folder)
    random_hugging_face(TINY, VOCABULARY).save_pretrained(folder)
    return folder


def from_weights(output: Path, prepared, weights: Path) -> Config:
    config = run(output, books(prepared), weights)
    config.init.hf, config.model.vocab_size = str(weights), VOCABULARY
    return config


@pytest.fixture(scope="module")
def one_process_on_books(prepared, weights, tmp_path_factory):
    return on_ranks(jobs.train, 1, from_weights(tmp_path_factory.mktemp("books") / "one", prepared, weights))[0]


@pytest.mark.parametrize(
    "parallel",
    [Parallel(tensor=2, sequence=True), Parallel(context=2), Parallel(pipeline=2)],
    ids=["TP2+SP", "CP2", "PP2"],
)
def test_books_under_a_layout_give_the_losses_of_one_process(
    prepared, weights, one_process_on_books, tmp_path, parallel
):
    config = from_weights(tmp_path / "two", prepared, weights)
    config.trainer.devices, config.parallel = 2, parallel

    results = on_ranks(jobs.train, 2, config)

    assert one_process_on_books["losses"] == pytest.approx(results[-1]["losses"], abs=1e-5)
    assert len({*one_process_on_books["losses"]}) == 2


def books(prepared) -> Data:
    return Data(name=DataName.pretrain, path=str(prepared["pg19"]), seq_length=SEQ_LENGTH, validation_samples=4)


def test_a_sample_is_a_whole_book_in_every_epoch(prepared, bpe_folder):  # noqa: F811
    samples = on_ranks(jobs.book_samples, 1, str(prepared["pg19"] / "train"), SEQ_LENGTH, 50, str(bpe_folder))[0]

    documents = IndexedDocuments(prepared["pg19"] / "train")
    whole = {(*documents[number].input_ids[:-1].tolist(), 0) for number in range(BOOKS)}
    assert {tuple(sample.tolist()) for sample in samples} == whole


def test_documents_of_another_length_are_refused_by_the_data_set(prepared, bpe_folder):  # noqa: F811
    with pytest.raises(RuntimeError, match="train: not every document has 60 tokens"):
        on_ranks(jobs.book_samples, 1, str(prepared["pg19"] / "train"), 60, 5, str(bpe_folder))


# The paper's three settings: from the published formats to a Hugging Face checkpoint

SETTINGS = {
    "context_extension_llama3_8b_64k": ("pg19", f"data.seq_length={SEQ_LENGTH} model.rotary_base=2e7"),
    "language_modeling_llama31_8b_64k": ("pg19", f"data.seq_length={SEQ_LENGTH}"),
    "alignment_llama31_8b_128k": ("alignment", "data.seq_length=1024 data.document_length=1024"),
}
SMALL = """
    model=tiny model.num_layers=2 model.hidden_size=64 model.ffn_hidden_size=128 model.init_std=0.1
    parallel.tensor=1 parallel.sequence=false parallel.context=1 trainer.devices=1 trainer.accelerator=cpu
    trainer.precision=fp32 trainer.recompute=none trainer.max_steps=2 trainer.global_batch_size=2 trainer.val_interval=2
    trainer.checkpoint_interval=0 data.validation_samples=4 optim.lr=1e-3
"""


@pytest.fixture(scope="module")
def settings(prepared, weights, tmp_path_factory) -> dict[str, Path]:
    """Each run's output."""
    folder, configs = tmp_path_factory.mktemp("settings"), {}
    for name, (data, own) in SETTINGS.items():
        where = f"init.hf={weights} data.path={prepared[data]} output={folder / name}"
        overrides = [f"experiment={name}", *SMALL.split(), f"model.vocab_size={VOCABULARY}", *own.split()]
        configs[name] = composed([*overrides, *where.split()])
    on_ranks(jobs.fit, 1, *configs.values())
    return {name: Path(config.output) for name, config in configs.items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_the_paper_goes_from_raw_files_to_a_hugging_face_model(settings, weights, name):
    before, after = (loaded(folder) for folder in (weights, settings[name] / "hf"))

    assert all((a != b).any() for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert after.config.rope_theta == (2e7 if name.startswith("context_extension") else 5e5)
    assert AutoTokenizer.from_pretrained(settings[name] / "hf").vocab_size > 1000
    rows = resuming.metrics(settings[name])
    assert [row["step"] for row in rows if "noise_fraction" in row] == [1, 2]
    assert any("val_perplexity" in row for row in rows)
