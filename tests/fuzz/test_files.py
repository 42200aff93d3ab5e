"""Whatever a file holds, reading it gives a value or one line that names it: no traceback, nothing run or written."""

import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from nemo_cdt import config as c
from nemo_cdt.analysis.samples import load_samples
from nemo_cdt.analysis.settings import Samples, Source
from nemo_cdt.analysis.significance import read_scores
from nemo_cdt.checkpoint import huggingface
from nemo_cdt.config.huggingface import read_model
from nemo_cdt.data import templates
from nemo_cdt.data.jsonl import JsonlDocuments
from nemo_cdt.data.preferences import PreferenceDocuments
from nemo_cdt.data.tokenizer import byte_tokenizer, load_tokenizer
from nemo_cdt.evaluation import model as evaluated
from nemo_cdt.prepare.files import find_files, index_of, read_rows
from nemo_cdt.prepare.settings import Kind
from nemo_cdt.prepare.write import describe
from nemo_cdt.prepared import fingerprint, read_summary
from nemo_cdt.report import heatmap, summary
from nemo_cdt.report.run import read_run
from nemo_cdt.validation.sources import _check_hf_model, _check_prepared
from tests.fuzzing import both, json_mutations, mutations, outcomes, watched

CHAT = [
    {"role": "user", "content": "Where is the fox 🦊?"},
    {"role": "assistant", "content": "In the garden"},
]


@pytest.fixture(scope="module", autouse=True)
def renderer():
    """The one process that reading starts: before the watch."""
    templates.rendered(byte_tokenizer(), CHAT)


def seen(found, count):
    """Some are harmless, some are not, or nothing was tried."""
    assert found.total() == count
    assert found["refused"] > count // 20


ROPE = {
    "llama3": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0},
}
ROPE["llama3"] |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("kind", "rope"), [(LlamaConfig, "llama3"), (MistralConfig, "yarn"), (Qwen2Config, "yarn"), (Qwen3Config, "yarn")]
)
def test_config_json(tmp_path, kind, rope):
    folder = tmp_path / "model"
    made = kind(
        architectures=[kind.__name__.replace("Config", "ForCausalLM")],
        rope_scaling=dict(ROPE[rope]),
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=64,
    )
    made.save_pretrained(folder)
    original = json.loads((folder / "config.json").read_text())
    model = read_model(folder)

    def read():
        config = c.Config(model=model)
        _check_hf_model(config, folder)
        read_model(folder)

    with watched(tmp_path):
        seen(outcomes(both(original, 1000), (folder / "config.json").write_bytes, read, str(folder)), 1000)
        asked = outcomes(
            both(original, 50),
            (folder / "config.json").write_bytes,
            lambda: evaluated.read_config(folder),
            str(folder),
        )
        assert asked.total() == 50


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("tokenizer.json", 450),
        ("tokenizer_config.json", 300),
        ("special_tokens_map.json", 150),
        ("chat_template.jinja", 200),
    ],
)
def test_tokenizer_files(tmp_path, monkeypatch, name, count):
    monkeypatch.setattr(templates, "SECONDS", 2.0)
    folder, rows = tmp_path / "tokenizer", tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": CHAT}) + "\n" + json.dumps({"text": "é fox"}))
    byte_tokenizer().save_pretrained(folder)
    original = (folder / name).read_bytes()

    def read():
        fingerprint(str(folder))
        tokenizer = load_tokenizer(str(folder))
        documents = JsonlDocuments(rows, tokenizer, seq_length=512, truncate=True, vocab_size=1 << 20)
        return [documents[0], documents[1]]

    damaged = mutations(original, count) if name.endswith("jinja") else both(json.loads(original), count)
    with watched(tmp_path):
        found = outcomes(damaged, (folder / name).write_bytes, read, str(tmp_path))
    assert found.total() == count
    assert found["refused"]


def test_safetensors_index(tmp_path):
    tensors = {f"model.layers.{n}.weight": torch.ones(2) for n in range(4)}
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for number, name in enumerate(names):
        save_file(dict([*tensors.items()][2 * number : 2 * number + 2]), tmp_path / name)
    index = {"metadata": {"total_size": 32}, "weight_map": {t: names[n // 2] for n, t in enumerate(tensors)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert huggingface.read_weights(tmp_path).keys() == tensors.keys()

    def read():
        return {name: tensor.sum() for name, tensor in huggingface.read_weights(tmp_path).items()}

    with watched(tmp_path):
        path = tmp_path / "model.safetensors.index.json"
        seen(outcomes(both(index, 1000), path.write_bytes, read, str(tmp_path)), 1000)
        path.write_text(json.dumps(index))
        shard = (tmp_path / names[0]).read_bytes()
        seen(outcomes(mutations(shard, 500), (tmp_path / names[0]).write_bytes, read, names[0]), 500)


ROWS = [
    {"text": "é fox", "source": "a book"},
    {"messages": CHAT},
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
]
PREFERENCE = {"prompt": "Where?", "chosen": "Here.", "rejected": ["There.", "Nowhere."]}
SAMPLES = [
    {"text": "The fox is here", "answer": "here", "spans": [{"start": 0, "end": 3, "type": "supporting"}]},
    {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "token_types": ["supporting", "answer", "answer"]},
]
SCORES = [{"id": 1, "score": 0.5}, {"id": "b", "prediction": "x", "answer": "X"}]


def lines(rows, count):
    """Files of JSON lines, of which each has one row damaged."""
    for number, row in enumerate(rows):
        others = [json.dumps(each).encode() for each in rows]
        for damaged in both(row, count // len(rows), seed=number):
            yield b"\n".join([*others[:number], damaged, *others[number + 1 :]])


@pytest.mark.parametrize("name", ["rows", "preferences", "samples", "scores"])
def test_jsonl(tmp_path, name):
    path, byte = tmp_path / "rows.jsonl", byte_tokenizer()
    how = {"seq_length": 512, "truncate": False, "vocab_size": 262}

    def read_documents(kind):
        documents = kind(path, byte, **how)
        return [documents[index] for index in range(len(documents))]

    rows, read = {
        "rows": (ROWS, lambda: read_documents(JsonlDocuments)),
        "preferences": ([PREFERENCE], lambda: read_documents(PreferenceDocuments)),
        "samples": (SAMPLES, lambda: load_samples(Samples(name=Source.jsonl, path=str(path)), byte, 262, 0)),
        "scores": (SCORES, lambda: read_scores(path)),
    }[name]
    count = 1200 if name == "rows" else 600
    with watched(tmp_path):
        seen(outcomes(lines(rows, count), path.write_bytes, read, str(path)), count)


def prepared(folder):
    folder.mkdir()
    for name in ("train.bin", "train.idx", "validation.bin", "validation.idx"):
        (folder / name).touch()
    counts = {"documents": 8, "tokens": 80, "labelled": 70, "unprompted": 0, "shortest": 10, "longest": 10}
    source = {"dropped": {"bad row": 1}, "rows": 9, "rows_read": 9, "supporting_passages": {"2": 4}, "licence": "MIT"}
    return {
        "train": counts | {"lengths": {"0 to 1023": 8}},
        "validation": counts,
        "tokenizer": {"path": "byte", "fingerprint": "byte", "size": 262},
        "sources": {"jsonl": source},
        "seed": 0,
    }


def test_summary_json(tmp_path):
    folder = tmp_path / "prepared"
    original = prepared(folder)
    config = c.Config(data=c.Data(name=c.DataName.prepared, path=str(folder), seq_length=64, validation_samples=8))

    def read():
        assert isinstance(read_summary(folder)["tokenizer"]["size"], int)
        assert describe(folder).startswith(str(folder))
        _check_prepared(config)

    with watched(tmp_path):
        seen(outcomes(both(original, 1200), (folder / "summary.json").write_bytes, read, str(folder)), 1200)


def a_run(folder):
    folder.mkdir()
    c.save(c.Config(lora=c.Lora(rank=4), output=str(folder)), folder / "config.yaml")
    rows = [{"step": n, "loss": 2.0 / n, "val_loss": 1.0, "noise_fraction": 0.5, "threshold": 0.1} for n in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row | {"step_time": 1.0}) + "\n" for row in rows))
    sample = {"step": 3, "tokens": ["a", "\udcf0\udc9f", "<b>"], "types": [0, 1, 2], "scores": [0.1, 0.2, 0.3]}
    sample |= {"threshold": 0.2, "noise": [True, False, True], "labels": [False, True, True]}
    (folder / "sample.json").write_text(json.dumps(sample))
    (folder / "versions.json").write_text(json.dumps({"torch": "2", "numpy": "1"}))


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "sample.json", "versions.json"])
def test_a_run(tmp_path, monkeypatch, name):
    """All of a report but its pictures, which take numbers alone."""
    folder = tmp_path / "run"
    a_run(folder)
    if name != "config.yaml":
        known = c.load(folder / "config.yaml")
        monkeypatch.setattr("nemo_cdt.report.run.load", lambda _: known)
    original = (folder / name).read_bytes()

    def read():
        run = read_run(folder)
        told = [summary.headline(run), summary.facts(run), summary.notice(run), summary.table(run)]
        told += [summary.again(run, folder)]
        return told + ([heatmap.stretches(run.sample), heatmap.type_table(run.sample)] if run.sample else [])

    count = 150 if name == "config.yaml" else 501
    if name == "config.yaml":
        from omegaconf import OmegaConf

        value = OmegaConf.to_container(OmegaConf.create(original.decode()))
        damaged = (json.dumps(each).encode() for each in json_mutations(value, count - 60))
        damaged = [*damaged, *mutations(original, 60)]
    elif name == "metrics.jsonl":
        damaged = lines([json.loads(line) for line in original.splitlines()], count)
    else:
        damaged = both(json.loads(original), count)
    with watched(tmp_path):
        found = outcomes(iter(damaged), (folder / name).write_bytes, read, str(folder))
    assert found.total() == count
    if name == "config.yaml":
        assert found["refused"]


def test_megatrons_index(tmp_path):
    import numpy as np

    from nemo_cdt.megatron.indexed import IndexedDocuments, write_indexed

    ids = np.arange(8, dtype=np.int32)
    write_indexed(tmp_path / "train", [[ids], [ids, ids]])
    original = Path(tmp_path / "train.idx").read_bytes()
    shutil.copyfile(tmp_path / "train.idx", tmp_path / "copy")

    def read():
        documents = IndexedDocuments(tmp_path / "train")
        return [(documents[index], documents.length(index)) for index in range(len(documents))]

    with watched(tmp_path):
        found = outcomes(mutations(original, 1000), (tmp_path / "train.idx").write_bytes, read, "train")
    seen(found, 1000)


def test_parquet_and_json_arrays(tmp_path):
    table = pyarrow.Table.from_pylist([{"text": f"book {number} " * 9} for number in range(9)])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=4)
    (tmp_path / "rows.json").write_text(json.dumps([*ROWS, *ROWS]))
    with watched(tmp_path):
        for name in ("rows.parquet", "rows.json"):
            path = tmp_path / name
            found = outcomes(mutations(path.read_bytes(), 400), path.write_bytes, lambda p=path: rows_of(p), str(path))
            assert found.total() == 400
            assert found["refused"]


def rows_of(path):
    (file,) = find_files(path, Kind.books if path.suffix == ".parquet" else Kind.rows)
    return list(read_rows([file], index_of([file])))
