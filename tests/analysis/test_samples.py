import json

import numpy as np
import pytest

from nemo_cdt.analysis.samples import load_samples
from nemo_cdt.analysis.settings import Samples, Source
from nemo_cdt.data.documents import TokenType
from nemo_cdt.data.tokenizer import byte_tokenizer, token_texts

VOCABULARY = 262
TEXT = "Rain. Mary went to the hall. It is a hall, or Bob's. Q: where? A: hall"
SPANS = [
    {"start": 6, "end": 28, "type": "supporting"},
    {"start": 29, "end": 52, "type": "interference"},
    {"start": 53, "end": 65, "type": "question"},
]
ROW = {"text": TEXT, "answer": "hall", "spans": SPANS}
TOKENS = {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, -100], "token_types": ["irrelevant"] * 3 + ["answer"]}


def load(path, *rows, tokenizer=None, samples=16):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    settings = Samples(name=Source.jsonl, path=str(path), samples=samples)
    return load_samples(settings, tokenizer or byte_tokenizer(), VOCABULARY, seed=0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "samples.jsonl"


def test_the_last_occurrence_of_the_answer_is_what_is_predicted(path):
    (one,) = load(path, ROW)

    assert bytes(one.input_ids.tolist()).decode() == TEXT[:-1]
    assert bytes(one.answer.tolist()) == b"hall"
    assert one.rows.tolist() == list(range(len(TEXT) - 5, len(TEXT) - 1))
    for type, expected in ((TokenType.supporting, TEXT[6:28]), (TokenType.interference, TEXT[29:52])):
        assert bytes(one.input_ids[one.of(type)].tolist()).decode() == expected


def test_tokens_with_labels_and_types_are_taken_as_they_are(path):
    (one,) = load(path, TOKENS)

    assert one.input_ids.tolist() == [5, 6]  # what follows the last label is not fed
    assert (one.rows.tolist(), one.answer.tolist()) == ([1], [7])


def test_as_many_as_asked_for_are_read(path):
    assert [one.where for one in load(path, TOKENS, "", TOKENS, "not read", samples=2)] == [f"{path}:1", f"{path}:3"]


def test_generated_questions_end_before_the_eos():
    tokenizer = byte_tokenizer()
    samples = load_samples(Samples(samples=3, seq_length=900), tokenizer, VOCABULARY, seed=1)

    for one in samples:
        text = "".join(token_texts(tokenizer, [*one.input_ids.tolist(), int(one.answer[-1])]))
        assert text.endswith(f"Answer: {bytes(one.answer.tolist()).decode().strip()}")
        assert len(one) <= 900
        assert {*np.unique(one.types)} == {*TokenType}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"answer": "cellar"}, "the answer 'cellar' does not occur in the text"),
        ({"answer": ""}, "'text' and 'answer' must be strings"),
        ({"spans": None}, "'spans' must be a list"),
        ({"spans": [{"start": 60, "end": 99, "type": "question"}]}, "the span 60 to 99 is not within the text of 70 "),
        ({"spans": [{"start": -1, "end": 4, "type": "question"}]}, "the span -1 to 4 is not within"),
        ({"spans": [{"start": 4, "end": 4, "type": "question"}]}, "the span 4 to 4 is not within"),
        ({"spans": [{"start": 4, "type": "question"}]}, "has no integers 'start' and 'end'"),
        ({"spans": [SPANS[0], {"start": 20, "end": 40, "type": "question"}]}, "spans 6 to 28 and 20 to 40 overlap"),
        ({"spans": [{"start": 0, "end": 4, "type": "noise"}]}, "'noise' is no token type: irrelevant, supporting"),
    ],
)
def test_a_text_that_cannot_be_used_is_one_line(path, change, expected):
    with pytest.raises(ValueError, match=expected) as raised:
        load(path, ROW, ROW | change)

    assert str(raised.value).startswith(f"{path}:2: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ({"text": TEXT}, r"has \['text'\]; a sample has 'text', 'answer' and 'spans', or"),
        (TOKENS | {"labels": [-100] * 3}, "4 'input_ids', 3 'labels' and 4 'token_types'"),
        (TOKENS | {"input_ids": ["5"]}, "'input_ids' must be a list of integers"),
        (TOKENS | {"token_types": [0, 0, 0, 9]}, "0 is no token type"),
        (TOKENS | {"labels": [5, -100, -100, -100]}, "no token behind the first is labelled"),
        (TOKENS | {"input_ids": [5, 6, 7, 262]}, "input_ids: 262 is outside the model's vocabulary of 262"),
    ],
)
def test_a_row_that_cannot_be_used_is_one_line(path, row, expected):
    with pytest.raises(ValueError, match=expected) as raised:
        load(path, row)

    assert str(raised.value).startswith(f"{path}:1: ")


def test_a_file_that_is_not_there_or_empty_is_one_line(path):
    with pytest.raises(ValueError, match=rf"data\.path={path}: no samples in it"):
        load(path, "")
    path.unlink()
    with pytest.raises(ValueError, match=rf"^{path}: No such file"):
        load_samples(Samples(name=Source.jsonl, path=str(path)), byte_tokenizer(), VOCABULARY, seed=0)


def test_text_without_a_tokenizer_is_one_line(path):
    path.write_text(json.dumps(ROW))
    with pytest.raises(ValueError, match="'text' needs a tokenizer, and the model's folder has none"):
        load_samples(Samples(name=Source.jsonl, path=str(path)), None, VOCABULARY, seed=0)
    with pytest.raises(ValueError, match="has no tokenizer: set tokenizer=DIR, or tokenizer=byte"):
        load_samples(Samples(), None, VOCABULARY, seed=0)
