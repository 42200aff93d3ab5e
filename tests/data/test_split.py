import json

import pytest

from nemo_cdt.config import Data, DataName
from nemo_cdt.data.split import load_documents


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {number:02d}"}) + "\n" for number in range(20)))
    return str(path)


def load(byte, *, seed=1, max_documents=40, vocab_size=512, **data):
    return load_documents(Data(**data), byte, seed=seed, max_documents=max_documents, vocab_size=vocab_size)


def texts(byte, documents):
    return [byte.decode(documents[index].input_ids) for index in range(len(documents))]


def jsonl(byte, rows, **settings):
    return [texts(byte, part) for part in load(byte, name=DataName.jsonl, path=rows, **settings)]


def test_rows_of_one_file_are_split_and_never_shared(byte, rows):
    train, validation = jsonl(byte, rows, validation_samples=5)
    assert (len(train), len(validation)) == (40, 5)
    assert sorted({*train, *validation}) == [f"row {number:02d}" for number in range(20)]
    assert not {*train} & {*validation}
    assert {*train[:15]} == {*train[15:30]}
    assert train[:15] != train[15:30]


def test_the_split_is_the_seeds(byte, rows):
    expected = jsonl(byte, rows, validation_samples=5)
    assert jsonl(byte, rows, validation_samples=5) == expected
    assert jsonl(byte, rows, validation_samples=5, seed=2)[1] != expected[1]


def test_unshuffled_rows_keep_the_order_of_the_file(byte, rows):
    train, validation = jsonl(byte, rows, validation_samples=5, shuffle=False, max_documents=15)
    assert train == sorted(train)
    assert validation == sorted(validation)


def test_a_validation_file_leaves_the_training_file_whole(byte, rows, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "held out"}\n')
    train, validation = jsonl(byte, rows, validation_path=str(other), max_documents=20)
    assert len({*train}) == 20
    assert validation == ["held out"]


@pytest.mark.parametrize("asked", [20, 64])
def test_more_validation_rows_than_the_file_can_spare_are_refused(byte, rows, asked):
    with pytest.raises(ValueError, match=rf"data\.validation_samples={asked} leaves nothing of the 20 rows"):
        load(byte, name=DataName.jsonl, path=rows, validation_samples=asked)


def test_what_is_cut_off_is_known_behind_the_order_and_the_split(byte, rows):
    train, _ = load(byte, name=DataName.jsonl, path=rows, seq_length=4, truncate=True, validation_samples=5)
    assert train.truncated == (0, 0)
    assert len(train[0].input_ids) == 5
    assert train.truncated == (1, len("row 00") - 5)


def test_multihop_gives_a_document_for_every_sample_of_the_run(byte):
    train, validation = load(byte, seq_length=700, max_documents=12, validation_samples=6)
    assert (len(train), len(validation)) == (12, 6)
    assert len({*texts(byte, train), *texts(byte, validation)}) == 18


def test_a_model_without_room_for_the_tokenizers_vocabulary_is_refused(byte):
    with pytest.raises(ValueError, match=r"model\.vocab_size=256 is smaller than the tokenizer's 262"):
        load(byte, vocab_size=256)
