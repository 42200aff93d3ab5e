import json
import multiprocessing
import os
import re
from copy import deepcopy

import numpy as np
import pytest

from nemo_cdt.data.documents import IGNORE
from nemo_cdt.data.jsonl import JsonlDocuments, chat_tokens

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is the fox 🦊?"},
    {"role": "assistant", "content": "In the garden 🦊"},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Gone."},
]


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="rows.jsonl"):
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (tmp_path / name).write_bytes(b"\n".join(lines))
        return tmp_path / name

    return write


def documents(path, tokenizer, *, seq_length=64, truncate=False, vocab_size=4096):
    return JsonlDocuments(path, tokenizer, seq_length=seq_length, truncate=truncate, vocab_size=vocab_size)


def labelled(tokenizer, ids, labels):
    assert (labels[labels != IGNORE] == ids[labels != IGNORE]).all()
    return tokenizer.decode(ids[labels != IGNORE])


def test_text_is_labelled_throughout(byte, write):
    (document,) = documents(write({"text": "é fox", "source": "a book"}), byte)
    expected = list("é fox".encode())
    assert document.input_ids.tolist() == document.labels.tolist() == expected
    assert document.input_ids.dtype == document.labels.dtype == np.int64
    assert document.types is None


def test_text_begins_with_bos_where_the_tokenizer_adds_it(bpe, write):
    (document,) = documents(write({"text": "the object"}), bpe)
    assert document.input_ids[0] == bpe.bos_token_id
    assert bpe.decode(document.input_ids[1:]) == "the object"


@pytest.mark.parametrize("row", [{"text": "a fox"}, {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}])
def test_a_row_without_a_prompt_is_refused_where_answers_alone_are_trained_on(byte, write, row):
    prompted = {"input_ids": [5, 6, 7], "labels": [IGNORE, 6, 7]}
    how = {"seq_length": 64, "truncate": False, "vocab_size": 4096, "prompted": True}
    assert len(JsonlDocuments(write(prompted), byte, **how)) == 1
    with pytest.raises(ValueError, match=r"rows.jsonl:2: every token is labelled.*or set objective=ce"):
        JsonlDocuments(write(prompted, row), byte, **how)


def test_given_tokens_are_taken_as_they_are(byte, write):
    (document,) = documents(write({"input_ids": [5, 6, 7], "labels": [IGNORE, IGNORE, 7]}), byte)
    assert document.input_ids.tolist() == [5, 6, 7]
    assert document.labels.tolist() == [IGNORE, IGNORE, 7]


def test_only_the_assistants_turns_of_a_chat_are_labelled(byte, write):
    (document,) = documents(write({"messages": CHAT}), byte, seq_length=200)
    assert labelled(byte, document.input_ids, document.labels) == "In the garden 🦊<|eos|>Gone.<|eos|>"
    assert byte.decode(document.input_ids) == byte.apply_chat_template(CHAT, tokenize=False)


def test_a_template_that_marks_no_turns_is_labelled_by_its_prefixes(bpe):
    ids, labels = chat_tokens(bpe, CHAT)
    assert labelled(bpe, ids, labels) == "In the garden 🦊<|eot|>Gone.<|eot|>"
    assert ids.tolist() == bpe.apply_chat_template(CHAT)


def test_both_ways_label_a_chat_alike(byte, write):
    expected = chat_tokens(byte, CHAT)
    marked = byte.chat_template
    try:
        byte.chat_template = re.sub(r"\{%- (end)?generation -%\}", "", marked)
        ids, labels = chat_tokens(byte, CHAT)
    finally:
        byte.chat_template = marked
    assert (ids == expected[0]).all()
    assert (labels == expected[1]).all()


def with_template(tokenizer, template):
    tokenizer = deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def test_a_turn_ends_with_its_last_character_where_no_token_marks_the_end(byte):
    lines = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n\n{% endfor %}"
    prompt = "{% if add_generation_prompt %}assistant: {% endif %}"
    ids, labels = chat_tokens(with_template(byte, lines + prompt), CHAT)
    assert labelled(byte, ids, labels) == "In the garden 🦊\n\nGone.\n\n"


def test_a_template_that_renders_a_turn_otherwise_when_more_follow_is_refused(byte, write):
    forgetful = "{% for message in messages %}{{ message['content'] if loop.last else '...' }}{% endfor %}"
    rows = documents(write({"messages": CHAT}), with_template(byte, forgetful))
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: .*messages 1 to 3 otherwise when more follow"):
        rows[0]


def test_a_chat_that_the_template_refuses_is_an_error_of_its_line(byte, write):
    strict = "{{ raise_exception('roles must alternate') }}"
    rows = documents(write({"messages": CHAT}), with_template(byte, strict))
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: .*refuses these messages: roles must alternate"):
        rows[0]


def test_blank_lines_are_no_rows_but_count_as_lines(byte, write):
    path = write({"text": "one"}, b"", b"  \r", {"text": "two"}, {"text": "x" * 99}, b"")
    rows = documents(path, byte)
    assert [byte.decode(rows[index].input_ids) for index in (1, 0)] == ["two", "one"]
    assert len(rows) == 3
    with pytest.raises(ValueError, match=r"rows\.jsonl:5: 99 tokens"):
        rows[2]


IDS = {"input_ids": [1, 2, 3], "labels": [1, 2, 3]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"text": "cut of', "not JSON: Unterminated"),
        (b'{"text": "\xff"}', "not JSON: 'utf-8'"),
        (b'["text"]', "not a JSON object"),
        ({"txt": "x", "id": 1}, "has ['id', 'txt']; a row needs 'text', 'messages', or 'input_ids' and 'labels'"),
        ({"text": ""}, "'text' must be a string"),
        ({"text": 7}, "'text' must be a string"),
        (b'{"text": "half a pair \\ud83e"}', "'text' must be a string of valid Unicode"),
        ({"input_ids": [1, 2]}, "'labels' must be a list of integers"),
        ({**IDS, "labels": [1, 2]}, "3 'input_ids' but 2 'labels'"),
        ({**IDS, "input_ids": [1, 2.0, 3]}, "'input_ids' must be a list of integers"),
        ({**IDS, "input_ids": [1, True, 3]}, "'input_ids' must be a list of integers"),
        ({**IDS, "input_ids": [[1], [2], [3]]}, "'input_ids' must be a list of integers"),
        ({**IDS, "input_ids": [1, 2, 2**70]}, f"'input_ids' holds {2**70}"),
        ({**IDS, "labels": [IGNORE] * 3}, "no labelled token among tokens 2 to 3"),
        ({**IDS, "labels": [1, IGNORE, IGNORE]}, "no labelled token among tokens 2 to 3"),
        ({"input_ids": [1], "labels": [1]}, "no labelled token"),
        ({"input_ids": [], "labels": []}, "no labelled token"),
        ({"input_ids": [1, 2, 4096], "labels": [1, 2, 4096]}, "input_ids: 4096 is outside the vocabulary of 4096"),
        ({"input_ids": [1, -1, 3], "labels": [1, -1, 3]}, "input_ids: -1 is outside"),
        ({**IDS, "labels": [1, -1, 3]}, "label 1 is -1, but token 1 is 2"),
        ({"input_ids": [1] * 66, "labels": [1] * 66}, "66 tokens are more than data.seq_length + 1 = 65"),
        ({"messages": []}, "no labelled token: no message is the assistant's"),
        ({"messages": CHAT[:2]}, "no labelled token: no message is the assistant's"),
        ({"messages": [{"role": "assistant"}]}, "'messages' must be a list of objects"),
        ({"messages": "hi"}, "'messages' must be a list of objects"),
    ],
)
def test_a_bad_row_is_refused_at_construction_with_file_and_line(byte, write, row, reason):
    path = write({"text": "fine"}, b"", row)
    with pytest.raises(ValueError, match="^" + re.escape(f"{path}:3: {reason}")) as error:
        documents(path, byte)
    assert "\n" not in str(error.value)


def test_a_chat_needs_a_tokenizer_with_a_template(byte, write):
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: 'messages' need a tokenizer with a chat template"):
        documents(write({"messages": CHAT}), with_template(byte, None))


@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
def test_a_file_without_rows_is_refused(byte, tmp_path, content):
    (tmp_path / "empty.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"empty\.jsonl: no rows"):
        documents(tmp_path / "empty.jsonl", byte)


def test_a_path_that_cannot_be_read_is_refused(byte, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: No such file"):
        documents(tmp_path / "nowhere", byte)
    with pytest.raises(ValueError, match=r": Is a directory"):
        documents(tmp_path, byte)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_refused(byte, write):
    path = write({"text": "secret"})
    path.chmod(0)
    with pytest.raises(ValueError, match=r": Permission denied"):
        documents(path, byte)


def test_text_is_refused_when_read_where_only_its_tokens_tell(byte, bpe, write):
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: 66 tokens .* raise data\.seq_length or set data\.truncate"):
        documents(write({"text": "x" * 66}), byte)[0]
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: no labelled token"):
        documents(write({"text": "x"}), byte)[0]
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: input_ids: 120 is outside the vocabulary of 100"):
        documents(write({"text": "xx"}), byte, vocab_size=100)[0]


def test_a_document_may_be_one_token_longer_than_the_sequence(byte, write):
    rows = documents(write({"text": "x" * 65}), byte, truncate=True)
    assert len(rows[0].input_ids) == 65
    assert rows.truncated == (0, 0)


def test_what_is_cut_off_is_counted(byte, write):
    long = {"input_ids": list(range(100)), "labels": list(range(100))}
    rows = documents(write(long, {"text": "x" * 70}, {"text": "short"}), byte, truncate=True)
    assert rows.truncated == (0, 0)
    assert [len(rows[index].input_ids) for index in range(3)] == [65, 65, 5]
    assert rows[0].labels.tolist() == list(range(65))
    assert rows.truncated == (3, 35 + 5 + 35)


def test_labels_that_all_lie_behind_the_cut_are_refused(byte, write):
    row = {"input_ids": [1] * 70, "labels": [IGNORE] * 69 + [1]}
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: no labelled token among tokens 2 to 65"):
        documents(write(row), byte, truncate=True)


def read_all(rows, answers):
    answers.put([rows[index].input_ids.tolist() for index in range(len(rows))])


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_worker_processes_read_the_same_and_share_one_count(byte, write, start):
    rows = documents(write(*({"text": f"{number} " * 40} for number in range(5))), byte, truncate=True)
    expected = [rows[index].input_ids.tolist() for index in range(len(rows))]
    context = multiprocessing.get_context(start)
    answers = context.Queue()
    workers = [context.Process(target=read_all, args=(rows, answers)) for _ in range(2 if start == "fork" else 1)]
    for worker in workers:
        worker.start()
    assert all(answers.get(timeout=60) == expected for _ in workers)
    for worker in workers:
        worker.join()
    assert rows.truncated[0] == len(rows) * (1 + len(workers))


def test_a_length_is_known_of_token_ids_and_once_asked_for_of_a_text_and_cuts_nothing(byte, write, monkeypatch):
    ids = {"input_ids": list(range(100)), "labels": list(range(100))}
    rows = documents(write(ids, {"text": "x" * 70}, {"text": "short"}), byte, truncate=True)
    offsets = []
    monkeypatch.setattr(rows, "_read", lambda offset, read=rows._read: offsets.append(offset) or read(offset))
    assert [rows.length(index) for index in (0, 1, 2, 1, 2)] == [65, 65, 5, 65, 5]
    assert offsets == [*rows._offsets[1:]]
    assert rows.truncated == (0, 0)
    assert [rows.length(index) for index in range(3)] == [len(rows[index].input_ids) for index in range(3)]


def test_the_index_holds_three_numbers_a_row(byte, write):
    rows = documents(write(*({"text": "word " * 10} for _ in range(1000))), byte)
    assert rows._offsets.nbytes + rows._lines.nbytes + rows._lengths.nbytes == 1000 * 3 * 8
    assert not any(isinstance(value, (list, bytes, str)) for value in vars(rows).values())


def test_a_text_that_begins_with_bos_has_one(bpe, write):
    (document,) = documents(write({"text": f"{bpe.bos_token}the object"}), bpe)

    assert document.input_ids.tolist() == bpe("the object")["input_ids"]


@pytest.mark.parametrize("key", [{"weight": 0}, {"train": False}])
def test_a_turn_with_weight_0_is_not_labelled(byte, bpe, key):
    first, last = "In the garden 🦊", "Gone."
    messages = deepcopy(CHAT)
    messages[2] |= key
    messages[4] |= {"weight": 1, "train": True}
    for tokenizer in (byte, bpe):
        ids, labels = chat_tokens(tokenizer, messages)
        assert labelled(tokenizer, ids, labels).startswith(last)
        assert first in tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("turn", "more", "expected"),
    [
        (2, {"weight": 0.5}, "a message has weight=0.5, train=None: a weight is 0 or 1"),
        (2, {"train": "no"}, "a message has weight=None, train='no'"),
        (1, {"weight": 1}, "a message of 'user' is to be trained on: only the assistant's are"),
    ],
)
def test_a_weight_that_cannot_be_honoured_is_refused(byte, write, turn, more, expected):
    messages = deepcopy(CHAT)
    messages[turn] |= more
    with pytest.raises(ValueError, match=rf"rows\.jsonl:1: {re.escape(expected)}"):
        documents(write({"messages": messages}), byte)


def test_a_chat_in_which_nothing_is_to_be_trained_on_is_refused(byte, write):
    messages = [turn | ({"weight": 0} if turn["role"] == "assistant" else {}) for turn in CHAT]
    with pytest.raises(ValueError, match="every message of the assistant's has weight 0, or train false"):
        documents(write({"messages": messages}), byte)


def test_labels_that_are_shifted_already_are_refused(byte, write):
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: label 0 is 6, but token 0 is 5: a label is -100 or its own"):
        documents(write({"input_ids": [5, 6, 7], "labels": [6, 7, IGNORE]}), byte)
