"""Each fault that a trial with hostile files found is one line that names the file, by a command where it is cheap."""

import json
import os
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from nemo_cdt import config as c
from nemo_cdt.checkpoint import huggingface
from nemo_cdt.cli import main
from nemo_cdt.config.huggingface import read_model
from nemo_cdt.data import templates
from nemo_cdt.data.jsonl import JsonlDocuments
from nemo_cdt.data.tokenizer import byte_tokenizer
from nemo_cdt.nemo.metrics import JsonLinesLogger
from nemo_cdt.report.run import read_run
from nemo_cdt.utils.user_errors import reported
from nemo_cdt.validation import check_files
from tests.fuzz.test_files import CHAT, a_run, prepared

FOR_EVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def one_line(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    told = capsys.readouterr().err
    assert ended.value.code == 2, told
    line = told.splitlines()[-1]
    assert "Traceback" not in told
    return line


MODEL = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "vocab_size": 262}
MODEL |= {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_key_value_heads", 0),
        ("num_key_value_heads", -2),
        ("num_attention_heads", 0),
        ("num_attention_heads", "4"),
        ("num_hidden_layers", 2.5),
        ("num_hidden_layers", True),
        ("hidden_size", 2**60),
        ("vocab_size", 10**30),
        ("max_position_embeddings", -1),
        ("head_dim", 0),
        ("num_labels", 10**9),
        ("rope_theta", "x"),
        ("rope_theta", float("nan")),
        ("rms_norm_eps", -1e-5),
        ("rope_scaling", 7),
        ("rope_scaling", {"rope_type": "llama3", "factor": "x"}),
        ("rope_parameters", {"rope_theta": [], "rope_type": "default"}),
    ],
)
def test_a_number_of_config_json_that_no_model_has_is_named(tmp_path, key, value):
    (tmp_path / "config.json").write_text(json.dumps(MODEL | {key: value}))
    expected = re.escape(f"{tmp_path}/config.json: its {key}")
    with pytest.raises(ValueError, match=f"^{expected}"):
        read_model(tmp_path)
    config = c.Config(init=c.Init(hf=str(tmp_path)), model=c.Model(tokenizer="byte"))
    with pytest.raises(ValueError, match=f"^init.hf={tmp_path} is no Hugging Face model: {expected}"):
        check_files(config)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({}, "it has no weight_map"),
        ([], "it must hold a JSON object, not []"),
        ({"weight_map": []}, "its weight_map must be dict, not []"),
        ({"weight_map": {}}, "its weight_map is empty"),
        (
            {"weight_map": {"a": "../model.safetensors"}},
            "a shard is a safetensors file of the same folder, not '../model",
        ),
        (
            {"weight_map": {"a": "/x/model.safetensors"}},
            "a shard is a safetensors file of the same folder, not '/x/model",
        ),
        (
            {"weight_map": {"a": "x/model.safetensors"}},
            "a shard is a safetensors file of the same folder, not 'x/model",
        ),
        ({"weight_map": {"a": 7}}, "a shard is a safetensors file of the same folder, not '7'"),
        ({"weight_map": {"a": "pytorch_model.bin"}}, "a shard is a safetensors file of the same folder, not 'pytorch"),
        ({"weight_map": {"a": "gone.safetensors"}}, "it names gone.safetensors, which is not there"),
    ],
)
def test_an_index_that_names_no_shards_of_its_folder_is_refused(tmp_path, index, reason):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL))
    (folder / INDEX).write_text(json.dumps(index))
    torch.save({}, tmp_path / "model.safetensors")
    expected = re.escape(f"{folder}/{INDEX}: {reason}")
    with pytest.raises(ValueError, match=f"^{expected}"):
        huggingface.read_weights(folder)
    with pytest.raises(ValueError, match=f"^init.hf={folder} is no Hugging Face model: {expected}"):
        check_files(c.Config(init=c.Init(hf=str(folder)), model=c.Model(tokenizer="byte")))


def test_convert_says_what_is_wrong_with_an_index(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(MODEL))
    (tmp_path / "model" / INDEX).write_text("{}")
    told = one_line(capsys, "convert", tmp_path / "model", tmp_path / "out")
    assert told == f"error: {tmp_path}/model/{INDEX}: it has no weight_map"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda summary: summary.clear(),
        lambda summary: summary.update(train=None),
        lambda summary: summary["train"].update(documents="8"),
        lambda summary: summary["validation"].update(longest=-1),
        lambda summary: summary["tokenizer"].pop("size"),
        lambda summary: summary["tokenizer"].update(path=None),
    ],
)
def test_a_summary_that_lacks_what_training_asks_is_one_line(tmp_path, capsys, change):
    folder = tmp_path / "prepared"
    summary = prepared(folder)
    change(summary)
    (folder / "summary.json").write_text(json.dumps(summary))
    assert f"{folder}/summary.json: " in one_line(capsys, "inspect", folder)
    config = c.Config(data=c.Data(name=c.DataName.prepared, path=str(folder)))
    with pytest.raises(ValueError, match=f"^data.path={folder}/summary.json: "):
        check_files(config)


def test_an_index_of_another_length_than_it_says_is_one_line(tmp_path, capsys):
    folder = tmp_path / "prepared"
    (folder).mkdir()
    (tmp_path / "rows.jsonl").write_text('{"text": "a fox"}\n{"text": "a dog"}')
    assert main(["prepare", "jsonl", f"input={tmp_path}/rows.jsonl", f"output={folder}", "tokenizer=byte"]) == 0
    whole = (folder / "train.idx").read_bytes()
    for damaged, reason in (
        (whole[:-1], "it has 81 bytes"),
        (b"", "unpack"),
        (whole[:9] + b"\x07" + whole[10:], "header"),
    ):
        (folder / "train.idx").write_bytes(damaged)
        told = one_line(capsys, "inspect", folder)
        assert told.startswith(f"error: {folder}/train.idx: it is no index of Megatron's (")
        assert reason in told


HALVES = ["\ud83e", "\udd8a", "a", "\udcf0\udc9f", "\udca6\udc8a", "\ud800\ud800"]


def test_half_a_surrogate_fails_no_report(tmp_path, capsys):
    a_run(tmp_path / "run")
    sample = json.loads((tmp_path / "run/sample.json").read_text())
    count = len(HALVES)
    sample |= {"tokens": HALVES, "types": None, "scores": [1.0] * count}
    sample |= {"noise": [True] * count, "labels": [True] * count}
    (tmp_path / "run/sample.json").write_text(json.dumps(sample))
    (tmp_path / "run/versions.json").write_text(json.dumps({"\ud800": "\udfff"}))
    assert main(["report", str(tmp_path / "run")]) == 0
    page = Path(capsys.readouterr().out.strip()).read_text(encoding="utf-8")
    assert "🦊" in page


def test_half_a_surrogate_fails_no_inspection(tmp_path, capsys):
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tok")
    file = tmp_path / "tok/tokenizer.json"
    file.write_text(file.read_text().replace('"!":33', '"\u4e00":33').replace('"!": 33', '"\u4e00": 33'))
    (tmp_path / "rows.jsonl").write_text('{"input_ids": [33, 240, 159], "labels": [33, 240, 159]}')
    assert main(["inspect", f"{tmp_path}/rows.jsonl", f"tokenizer={tmp_path}/tok"]) == 0
    assert "\u4e00" in capsys.readouterr().out


def test_what_a_run_says_of_itself_is_read_as_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "expanded")
    for name in ("${oc.env:SECRET}", r"a \${x}", "${", r"\\${x}"):
        c.save(c.Config(name="x"), tmp_path / "config.yaml")
        text = (tmp_path / "config.yaml").read_text().replace("name: x", f"name: '{name}'", 1)
        (tmp_path / "config.yaml").write_text(text)
        assert c.load(tmp_path / "config.yaml").name == name


def test_yaml_that_names_a_python_object_or_stands_for_billions_is_one_line(tmp_path):
    file = tmp_path / "config.yaml"
    for text in ("name: !!python/object/apply:os.system ['touch executed']", bomb()):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"^{file}[:,] "):
            c.load(file)


def bomb():
    names = "abcdefghi"
    first = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    return first + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise(names))


def test_metrics_that_are_no_rows_are_left_out_whatever_they_are(tmp_path):
    a_run(tmp_path / "run")
    file = tmp_path / "run/metrics.jsonl"
    good = file.read_text()
    bad = [
        "null",
        "[" * 10000,
        '{"step": 1e999}',
        '{"step": 1' + "0" * 400 + "}",
        '{"step": true}',
        '{"step": -1}',
        "\x00",
    ]
    file.write_text("\n".join([*bad, good]) + json.dumps({"step": 4, "loss": 10**400, "truncated_tokens": "x"}) + "\n{")
    run = read_run(tmp_path / "run")
    assert run.training["step"].tolist() == [1, 2, 3, 4]
    assert run.remarks[0].startswith("Skipped unreadable metrics (line 1, 2, 3, 4, 5, 6, 7, 12)")
    JsonLinesLogger(file).drop_after(2)
    assert file.read_text() == "".join(good.splitlines(keepends=True)[:2])


@pytest.fixture
def chats(tmp_path, monkeypatch):
    """A tokenizer's folder with that template, and chats."""
    monkeypatch.setattr(templates, "SECONDS", 1.0)

    def write(template):
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / "tok")
        (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps({"messages": CHAT})] * 4))
        return tmp_path / "rows.jsonl", tokenizer

    return write


TOO_LARGE = "{{ 'x' * 10 ** 10 }}"
TEMPLATES = {
    "{{ 1 + messages[0]['content'] }}": "refuses these messages: TypeError: unsupported operand",
    "{% include 'other' %}": "refuses these messages: TypeError: no loader",
    FOR_EVER: "takes more than 1 seconds for one chat",
    TOO_LARGE: "needs more than 1,024 MiB of memory for one chat",
}


@pytest.mark.parametrize(("template", "workers"), [*((each, 1) for each in TEMPLATES), (TOO_LARGE, 2)])
def test_a_template_that_fails_is_one_line_of_inspect_and_of_prepare(
    chats, tmp_path, capsys, monkeypatch, template, workers
):
    rows, _ = chats(template)
    monkeypatch.setattr("nemo_cdt.prepare.work.TASK_ROWS", 2)
    told = one_line(capsys, "inspect", rows, f"tokenizer={tmp_path}/tok")
    assert told.startswith(f"error: {rows}:1: the tokenizer's chat template ({tmp_path}/tok) {TEMPLATES[template]}")
    where = [f"input={rows}", f"output={tmp_path}/out", f"tokenizer={tmp_path}/tok"]
    told = one_line(capsys, "prepare", "jsonl", *where, f"workers={workers}")
    assert f"the tokenizer's chat template ({tmp_path}/tok) {TEMPLATES[template]}" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_that_fails_in_a_worker_of_the_loader_is_the_same_line(chats, capsys, template):
    rows, tokenizer = chats(template)
    documents = JsonlDocuments(rows, tokenizer, seq_length=512, truncate=False, vocab_size=262)
    with pytest.raises(SystemExit) as ended, reported():
        list(DataLoader(documents, num_workers=2, collate_fn=list))
    assert ended.value.code == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith(f"error: {rows}:1: the tokenizer's chat template {TEMPLATES[template]}")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_file_of_a_tokenizer_that_is_no_json_is_named(tmp_path, capsys, name):
    byte_tokenizer().save_pretrained(tmp_path / "tok")
    (tmp_path / "tok" / name).write_text("[]")
    (tmp_path / "rows.jsonl").write_text('{"text": "a fox"}')
    told = one_line(capsys, "inspect", tmp_path / "rows.jsonl", f"tokenizer={tmp_path}/tok")
    assert told == f"error: {tmp_path}/tok/{name}: it must hold a JSON object, not []"


def test_a_named_pipe_is_no_file(tmp_path, capsys):
    os.mkfifo(tmp_path / "rows.jsonl")
    assert one_line(capsys, "inspect", tmp_path / "rows.jsonl") == f"error: {tmp_path}/rows.jsonl: it is no file"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("identity.json", b"[]"),
        ("identity.json", b"{}"),
        ("jsonl-index.npy", b"x"),
        ("jsonl-round1-000000.json", b"{}"),
        ("jsonl-round1-000000.json", b'{"rejected": [], "documents": [[99, 5, 1]]}'),
        ("jsonl-round1-000000.int32", b"x"),
    ],
)
def test_damaged_work_of_prepare_is_named(tmp_path, capsys, monkeypatch, name, data):
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps({"text": "a fox"})] * 3))
    words = ["prepare", "jsonl", f"input={tmp_path}/rows.jsonl", f"output={tmp_path}/out", "tokenizer=byte"]
    with monkeypatch.context() as killed:
        killed.setattr("nemo_cdt.prepare.write._write", interrupted)
        assert main(words) == 130
    file = tmp_path / ".out.partial" / name
    assert file.exists()
    file.write_bytes(data)
    assert name in one_line(capsys, *words)


def interrupted(*_):
    raise KeyboardInterrupt
