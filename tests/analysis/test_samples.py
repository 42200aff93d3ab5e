import json
import re

import numpy as np
import pytest

from nemo_cdt import cli
from nemo_cdt.analysis.samples import check_rows, load_samples
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
MESSAGES = [
    {"role": "system", "content": " Be short. "},
    {"role": "user", "content": "Mary went to the hall. user? Rain. Where is Mary?"},
    {"role": "assistant", "content": "She is in the hall."},
    {"role": "user", "content": "Thanks."},
]
CHAT_SPANS = [
    {"message": 1, "start": 0, "end": 22, "type": "supporting"},
    {"message": 1, "start": 35, "end": 49, "type": "question"},
]
CHAT = {"messages": MESSAGES, "spans": CHAT_SPANS}
TRIMMING = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
)
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


@pytest.mark.parametrize("template", [None, TRIMMING])
def test_spans_of_a_chat_are_characters_of_its_messages_and_its_last_reply_is_the_answer(path, template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template

    (one,) = load(path, CHAT, tokenizer=tokenizer)

    assert tokenizer.decode(one.answer) == "She is in the hall."
    assert tokenizer.decode(one.input_ids).endswith("<|assistant|>She is in the hall")
    for type, expected in ((TokenType.supporting, "Mary went to the hall."), (TokenType.question, "Where is Mary?")):
        assert tokenizer.decode(one.input_ids[one.of(type)]) == expected
    assert one.rows.tolist() == [len(one) - len(one.answer) + number for number in range(len(one.answer))]


def test_a_part_of_the_reply_may_be_the_answer(path):
    (one,) = load(path, CHAT | {"answer": "hall"})

    assert bytes(one.answer.tolist()) == b"hall"
    assert byte_tokenizer().decode(one.input_ids).endswith("<|assistant|>She is in the hal")


def test_a_template_that_does_not_write_a_message_as_it_stands_is_one_line(path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m['content'] | upper }}{% endfor %}"

    with pytest.raises(ValueError, match=f"{path}:1: the tokenizer's chat template does not write message 0 as it "):
        load(path, CHAT, tokenizer=tokenizer)


def test_the_rows_that_the_help_shows_can_be_read_and_its_types_are_all(path):
    shown = re.findall(r"^  (\{.*?\}?\})$", cli.ANALYZED_ROWS, re.MULTILINE | re.DOTALL)

    rows = load(path, *(" ".join(row.split()) for row in shown))
    questions = [byte_tokenizer().decode(row.input_ids[row.of(TokenType.question)]) for row in rows[:2]]
    assert (len(rows), questions) == (3, ["Where is Mary?", "Where?"])
    assert all(type in cli.ANALYZED_ROWS.rpartition("types:")[2] for type in TokenType.__members__)


def test_every_row_is_checked_however_few_are_asked_for(path):
    wrong = ROW | {"spans": [{"start": 0, "end": 4, "type": "noise"}]}
    path.write_text("\n".join(map(json.dumps, [ROW, CHAT, TOKENS, wrong])))

    with pytest.raises(ValueError, match=f"{path}:4: 'noise' is no token type, which are irrelevant, supporting"):
        check_rows(path)


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
        (
            {"spans": [{"start": 0, "end": 4, "type": "noise"}]},
            "'noise' is no token type, which are irrelevant, supporting",
        ),
    ],
)
def test_a_text_that_cannot_be_used_is_one_line(path, change, expected):
    with pytest.raises(ValueError, match=expected) as raised:
        load(path, ROW, ROW | change)

    assert str(raised.value).startswith(f"{path}:2: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"spans": None}, "'spans' must be a list of objects with 'message' .* in characters of the message"),
        ({"spans": [CHAT_SPANS[0] | {"message": 4}]}, "has no 'message', the number of one from 0 to 3"),
        ({"spans": [SPANS[0]]}, "has no 'message', the number of one from 0 to 3"),
        ({"spans": [CHAT_SPANS[0] | {"end": 50}]}, "the span 0 to 50 is not within the message of 49 characters"),
        ({"spans": [CHAT_SPANS[0] | {"type": "fact"}]}, "'fact' is no token type"),
        ({"spans": [CHAT_SPANS[0], CHAT_SPANS[0]]}, "spans 0 to 22 and 0 to 22 overlap"),
        ({"answer": "cellar"}, "the answer 'cellar' does not occur in the assistant's last message"),
        ({"answer": ""}, "must be text and not empty"),
        ({"messages": MESSAGES[:2]}, "no message is the assistant's"),
        ({"messages": ["Hello"]}, "'messages' must be a list of objects"),
        ({"messages": [{"role": "assistant", "content": " "}]}, "must be text and not empty"),
    ],
)
def test_a_chat_that_cannot_be_used_is_one_line(path, change, expected):
    path.write_text(json.dumps(CHAT | change))

    with pytest.raises(ValueError, match=expected) as raised:
        check_rows(path)

    assert str(raised.value).startswith(f"{path}:1: ")
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
