import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from nemo_cdt.config import Config, Data, DataName, Init, Model, Trainer
from nemo_cdt.prepare.request import read
from nemo_cdt.prepare.write import prepare
from nemo_cdt.prepared import fingerprint, read_summary
from nemo_cdt.validation import check_files, validate
from tests.data.conftest import bpe_folder  # noqa: F401
from tests.described import write_described
from tests.runs import settings_of


@pytest.fixture
def other(bpe_folder, tmp_path):  # noqa: F811
    return Path(shutil.copytree(bpe_folder, tmp_path / "other"))


def changed(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_tokenizer_is_known_by_what_it_writes_and_not_by_its_folder(bpe_folder, other, tmp_path):  # noqa: F811
    expected = fingerprint(str(bpe_folder))
    AutoTokenizer.from_pretrained(bpe_folder).save_pretrained(tmp_path / "saved")
    changed(other / "tokenizer.json", lambda content: content.update(truncation={"max_length": 5}, padding={"x": 1}))

    assert fingerprint(str(other)) == fingerprint(str(tmp_path / "saved")) == expected
    assert fingerprint("byte") == "byte"


def test_a_merge_a_token_or_a_chat_template_makes_another_tokenizer(bpe_folder, other):  # noqa: F811
    known = {fingerprint(str(bpe_folder))}
    changed(other / "tokenizer.json", lambda content: content["model"]["merges"].pop())
    known.add(fingerprint(str(other)))
    changed(other / "tokenizer.json", lambda content: content["added_tokens"].append({"content": "<new>"}))
    known.add(fingerprint(str(other)))
    (other / "chat_template.jinja").write_text("{{ messages }}")
    known.add(fingerprint(str(other)))

    assert len(known) == 4


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("books").mkdir()
    for number in range(4):
        Path(f"books/{number}.txt").write_text(f"{number} is the first word of this book. " * 4)
    rows = [{"text": f"row {number} " + "x" * number} for number in range(9)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, asked in (
        ("pg19", ["input=books", "seq_length=32", "samples=8", "validation_samples=2"]),
        ("jsonl", ["input=rows.jsonl", "validation_samples=2"]),
    ):
        prepare(name, read(name, [*asked, f"output={name}", "tokenizer=byte"]), "")


def run(name: DataName, path: str, seq_length: int = 32, val_interval: int = 0, **values) -> Config:
    trainer = Trainer(global_batch_size=2, val_interval=val_interval)
    held_out = values.pop("validation_samples", 2)
    model = Model(tokenizer=values.pop("tokenizer", "byte"))
    settings = Data(name=name, path=path, seq_length=seq_length, validation_samples=held_out, **values)
    return Config(model=model, data=settings, trainer=trainer)


def test_what_was_prepared_can_be_trained_on(data):
    validate(run(DataName.pretrain, "pg19", val_interval=1))
    validate(run(DataName.prepared, "pg19", pack=True))
    validate(run(DataName.prepared, "jsonl", val_interval=1, pack=True, document_length=31))


REFUSED = {
    "another tokenizer": (
        lambda bpe: run(DataName.prepared, "jsonl", tokenizer=str(bpe)),
        "is not the tokenizer that data.path=jsonl was prepared with, byte: set model.tokenizer to that",
    ),
    "no folder of ours": (
        lambda _: run(DataName.prepared, "books"),
        "data.path=books is no folder of `nemo-cdt prepare`",
    ),
    "no folder": (lambda _: run(DataName.prepared, "nowhere"), "data.path=nowhere does not exist"),
    "a file": (lambda _: run(DataName.prepared, "rows.jsonl"), "data.path=rows.jsonl is no folder of"),
    "nothing": (
        lambda _: run(DataName.pretrain, None),
        "data.path=null with data=pretrain, which has no rows of its own: set data.path=DIR",
    ),
    "too short": (
        lambda _: run(DataName.prepared, "pg19", seq_length=30),
        "data.seq_length=30 is shorter than the 31 positions of the longest document of data.path=pg19",
    ),
    "shorter documents": (
        lambda _: run(DataName.prepared, "pg19", document_length=8),
        "data.document_length=8 is shorter than the 31 positions",
    ),
    "not the length": (
        lambda _: run(DataName.pretrain, "pg19", seq_length=64),
        "data.seq_length=64 with data=pretrain, but the documents of data.path=pg19 have 32 to 32 tokens",
    ),
    "not one length": (lambda _: run(DataName.pretrain, "jsonl"), "have 6 to 14 tokens: set data.seq_length to that"),
    "too few held out": (
        lambda _: run(DataName.prepared, "jsonl", val_interval=1, validation_samples=4),
        "data.validation_samples=4, but data.path=jsonl holds out 2 documents: set data.validation_samples to that",
    ),
    "packed": (lambda _: run(DataName.pretrain, "pg19", pack=True), "set data.pack=false, or data=prepared"),
    "in order": (lambda _: run(DataName.pretrain, "pg19", shuffle=False), "set data.shuffle=true, or data=prepared"),
    "no prompts": (
        lambda _: replace(run(DataName.prepared, "jsonl"), objective=settings_of("sft")),
        "objective=sft trains on answers alone, but 7 documents of data.path=jsonl are labelled throughout",
    ),
    "cut": (lambda _: run(DataName.prepared, "jsonl", truncate=True), "prepare it with a lower max_tokens"),
    "validation elsewhere": (
        lambda _: run(DataName.prepared, "jsonl", validation_path="rows.jsonl"),
        "data.validation_path=rows.jsonl with data=prepared, whose folder has its own: set it to null",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_before_nemo_is_imported(data, bpe_folder, what):  # noqa: F811
    config, message = REFUSED[what]

    with pytest.raises(ValueError) as raised:  # noqa: PT011
        validate(config(bpe_folder))

    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_gone_is_named(data):
    Path("jsonl/train.idx").unlink()

    with pytest.raises(ValueError, match=r"data\.path=jsonl has no train\.idx: prepare it again"):
        check_files(run(DataName.prepared, "jsonl"))


def test_the_tokenizer_of_init_hf_is_the_one_that_is_compared(data, other):
    write_described(other, Model())
    config = run(DataName.prepared, "jsonl", tokenizer=None)
    config.init = Init(hf=str(other))

    with pytest.raises(ValueError, match="other is not the tokenizer that"):
        validate(config)


def test_a_summary_that_is_broken_is_no_summary(data):
    Path("jsonl/summary.json").write_text("{")

    with pytest.raises(ValueError, match="it has no readable summary"):
        read_summary(Path("jsonl"))
