import json

import pytest

from nemo_cdt.data.documents import IGNORE
from nemo_cdt.data.preferences import PreferenceDocuments, PreferenceRows

ROW = {"prompt": "Where is Mary?", "chosen": "In the hall.", "rejected": ["At home.", "In the hall and at home."]}


@pytest.fixture
def documents(tmp_path, byte):
    def load(*rows, seq_length=64):
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return PreferenceDocuments(
            tmp_path / "rows.jsonl", byte, seq_length=seq_length, truncate=False, vocab_size=4096
        )

    return load


def test_each_answer_is_labelled_after_the_same_prompt(byte, documents):
    (chosen,) = documents(ROW)
    answers = [chosen, *chosen.rejected]
    for document, answer in zip(answers, [ROW["chosen"], *ROW["rejected"]], strict=True):
        assert byte.decode(document.labels[document.labels != IGNORE]) == answer + "<|eos|>"
        assert (
            byte.decode(document.input_ids[document.labels == IGNORE])
            == "<|bos|><|user|>Where is Mary?<|eos|><|assistant|>"
        )


def test_a_chat_is_a_prompt_too(byte, documents):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]
    (chosen,) = documents({key: ROW[key] for key in ("chosen", "rejected")} | {"messages": chat})
    assert byte.decode(chosen.input_ids).startswith("<|bos|><|system|>Be brief.<|eos|><|user|>Where?")


def test_a_row_holds_the_three_answers_the_chosen_one_first(documents):
    loaded = documents(ROW)
    row = PreferenceRows(loaded, 192, multiple=4)[0]
    assert row["document_lengths"].tolist() == [len(d.input_ids) - 1 for d in (loaded[0], *loaded[0].rejected)]
    assert all(edge % 4 == 0 for edge in row["cu_seqlens"])
    assert [row["label_share"][row["documents"] == index].sum() for index in range(3)] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"rejected": ["one"]}, "'rejected' must be a list of 2 texts"),
        ({"rejected": "two"}, "'rejected' must be a list of 2 texts"),
        ({"rejected": ["one", 2]}, "valid strings 'role' and 'content'"),
        ({"chosen": None}, "valid strings 'role' and 'content'"),
        ({"prompt": None}, "valid strings 'role' and 'content'"),
        ({"messages": "Where?"}, "'messages' must be a list"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "a turn of the assistant's is in them"),
    ],
)
def test_a_row_that_cannot_be_used_is_an_error_that_names_its_line(documents, row, expected):
    with pytest.raises(ValueError, match=rf"rows.jsonl:2: .*{expected}"):
        documents(ROW, ROW | row)


def test_an_answer_that_is_too_long_is_an_error_where_it_is_read(documents):
    loaded = documents(ROW, seq_length=40)
    with pytest.raises(ValueError, match=r"rows.jsonl:1: .* more than 41, of which 3 fit in a row"):
        loaded[0]
