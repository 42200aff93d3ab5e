import json
import re
from pathlib import Path

import pytest

from nemo_cdt.inspection import inspect
from nemo_cdt.prepare.request import read
from nemo_cdt.prepare.write import prepare

CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Mary\x1b[2J é."}]


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": CHAT}) + "\n" + json.dumps({"text": "0123456789" * 6}) + "\n")
    return file


def shown(data, *overrides, coloured=False):
    named = () if Path(data).is_dir() else ("tokenizer=byte",)
    return "\n".join(inspect(str(data), [*named, *overrides], coloured=coloured))


def test_without_a_tokenizer_it_is_said_that_tokens_are_bytes(rows):
    first, *lines = inspect(str(rows), [], coloured=False)

    assert first == "no tokenizer is named, so that tokens are bytes: set tokenizer=DIR for those of a model"
    assert lines == shown(rows).splitlines()


def test_a_row_shows_its_counts_its_tokens_and_what_is_labelled(rows):
    assert shown(rows).splitlines() == [
        "row 0: 1 document, 20 of 20 positions fed, 13 of them labelled",
        "---- document 0: 21 tokens, 13 labelled ----",
        "<|bos|><|user|>Who?<|eos|><|assistant|>[[labelled: Mary\\x1b[2J é.<|eos|>]]",
    ]


def test_the_first_token_is_never_predicted(rows):
    assert shown(rows, "rows=1").splitlines()[-1] == f"0[[labelled: {('0123456789' * 6)[1:]}]]"


def test_of_a_long_document_the_ends_are_shown(rows):
    assert shown(rows, "rows=1", "tokens=3").splitlines()[2:] == [
        "0[[labelled: 12]]",
        "... 54 tokens ...",
        "[[labelled: 789]]",
    ]


def test_a_packed_row_shows_where_its_documents_begin(rows):
    lines = shown(rows, "pack=true", "seq_length=90").splitlines()

    assert lines[0] == "row 0: 2 documents, 79 of 90 positions fed, 72 of them labelled"
    assert [line for line in lines if line.startswith("----")] == [
        "---- document 0: 21 tokens, 13 labelled ----",
        "---- document 1: 60 tokens, 59 labelled ----",
    ]


def test_colours_write_the_same_text(rows):
    plain = re.sub(r"\[\[labelled: (.*?)\]\]$", r"\1", shown(rows), flags=re.MULTILINE)

    coloured = shown(rows, coloured=True)
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured).replace("�" * 2, "é") == plain
    assert "\x1b[38;5;34m" in coloured
    assert "\x1b[2J" not in coloured


def test_the_kinds_of_a_multihop_token_are_told():
    text = shown("multihop", "tokens=null", "seq_length=900")

    for kind in ("supporting", "interference", "low_frequency", "question", "labelled"):
        assert f"[[{kind}: " in text


def test_a_prepared_folder_is_shown_with_its_own_tokenizer(rows, tmp_path):
    asked = [f"input={rows}", f"output={tmp_path}/out", "tokenizer=byte", "validation_samples=1"]
    folder = prepare("jsonl", read("jsonl", asked), "")

    both = [shown(folder, f"split={split}").splitlines()[1:] for split in ("train", "validation")]
    assert sorted(both) == sorted(shown(rows, f"rows={row}").splitlines()[1:] for row in (0, 1))


@pytest.mark.parametrize(
    ("data", "override", "message"),
    [
        ("rows.jsonl", "rows=2", "rows=2: .*rows.jsonl has rows 0 to 1"),
        ("rows.jsonl", "rows=x", "rows"),
        ("rows.jsonl", "pack=true", "pack=true needs seq_length"),
        ("rows.jsonl", "split=test", "split: Invalid value 'test', expected one of"),
        ("rows.jsonl", "row=1", "unknown key row: did you mean rows"),
        ("rows.jsonl", "rows", "rows is no KEY=VALUE"),
        ("rows.jsonl", "seq_length=9", "rows.jsonl:1: 21 tokens are more than"),
        ("nothing", "rows=0", "nothing does not exist: name a folder"),
        (".", "rows=0", "is no folder of `nemo-cdt prepare`"),
    ],
)
def test_what_cannot_be_shown_is_one_line(rows, data, override, message):
    with pytest.raises(ValueError, match=message) as raised:
        shown(rows.parent / data, override)

    assert "\n" not in str(raised.value)
