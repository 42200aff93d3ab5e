import json

import numpy as np
import pytest

from nemo_cdt.data.documents import IGNORE
from nemo_cdt.data.jsonl import chat_tokens
from nemo_cdt.prepare.rejected import RejectedError
from nemo_cdt.prepare.request import compose_prepare
from nemo_cdt.prepare.rows import NONE_TOLD, Traits, check_fields, documents, supporting, traits
from nemo_cdt.prepare.settings import Fields, Kind, Source

CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Mary."}]


def content(**row):
    return json.dumps(row).encode()


def source(name, **values):
    settings = compose_prepare(name, [])
    return Source(**{**{key: getattr(settings, key) for key in Source.__dataclass_fields__}, "min_tokens": 2, **values})


LONGMIT = {"type": "extractive", "language": "en", "question": "q", "answer": "Mary.", "all_docs": [{"content": "p"}]}


def asked(tokenizer, row, **values):
    """What the user's turn says."""
    ((ids, labels),) = documents(content(**row), source("longmit", **values), tokenizer)
    return tokenizer.decode(ids[labels == IGNORE])


@pytest.mark.parametrize(
    ("type", "language", "expected"),
    [
        ("inter_doc", "en", "Give the whole reasoning"),
        ("intra_doc", "en", "Give the whole reasoning"),
        ("extractive", "en", "with the answer alone."),
        ("inter_doc", "zh", "写出得到答案的完整推理"),
        ("extractive", "zh", "只写出答案"),
    ],
)
def test_a_reasoning_is_asked_for_where_the_type_says_so_in_the_language_of_the_row(bpe, type, language, expected):
    others = {"Give the whole reasoning", "with the answer alone.", "写出得到答案的完整推理", "只写出答案"} - {expected}

    prompt = asked(bpe, {**LONGMIT, "type": type, "language": language}, languages=None)

    assert expected in prompt
    assert not any(other in prompt for other in others)
    assert ("文章1" if language == "zh" else "Passage 1:\np\n") in prompt


def test_a_language_without_a_translation_is_asked_as_english_is(bpe):
    assert "Passage 1:\np\n" in asked(bpe, {**LONGMIT, "language": "fr"}, languages=["fr"])


def test_a_row_tells_its_type_language_and_supporting_passages():
    passages = [{"content": text} for text in "abcd"]
    row = {**LONGMIT, "type": "intra_doc", "all_docs": passages, "clue_docs": passages[:3]}

    assert traits(content(**row), source("longmit")) == Traits(type="intra_doc", language="en", supporting=3)
    assert traits(content(q="Who?"), Source(fields=Fields(question="q"))) == NONE_TOLD


def test_a_book_becomes_chunks_that_begin_with_the_tokenizers_bos_and_lose_the_rest(bpe):
    text = "The object was called, and another object was not. " * 9
    whole = bpe(text, add_special_tokens=False)["input_ids"]

    chunks = documents({"text": text}, source("pg19", seq_length=20), bpe)

    assert len(chunks) == len(whole) // 19
    for number, (ids, labels) in enumerate(chunks):
        assert ids.tolist() == [bpe.bos_token_id, *whole[19 * number : 19 * (number + 1)]]
        assert labels is ids


def test_a_tokenizer_that_adds_no_bos_begins_a_chunk_with_text(byte):
    assert [ids.tolist() for ids, _ in documents(b"abcdefg", source("pg19", seq_length=3), byte)] == [
        list(b"abc"),
        list(b"def"),
    ]


def test_a_question_is_asked_behind_its_passages_and_the_answer_alone_is_labelled(bpe):
    row = {**LONGMIT, "question": "Who {x}?", "all_docs": [{"content": "One."}, {"content": "Two {y}."}]}
    prompt = "Passage 1:\nOne.\nPassage 2:\nTwo {y}.\n\nWho {x}?"
    expected = chat_tokens(bpe, [{"role": "user", "content": prompt}, {"role": "assistant", "content": "Mary."}])

    ((ids, labels),) = documents(content(**row), source("longmit", prompt="{passages}\n{question}"), bpe)

    assert ids.tolist() == expected[0].tolist()
    assert labels.tolist() == expected[1].tolist()
    assert bpe.decode(ids[labels != IGNORE]) == "Mary.<|eot|>"


def test_passages_may_be_texts_themselves(byte):
    plain = source("longmit", fields=Fields(question="q", answer="a", passages="p"), languages=None)

    ((ids, _),) = documents(content(q="Who?", a="Mary.", p=["One."]), plain, byte)

    assert "Passage 1:\nOne.\n\nQuestion: Who?" in byte.decode(ids)


def test_an_instruction_of_longalpaca_is_the_prompt_as_it_stands(bpe):
    row = {"instruction": "Who?", "output": "Mary.", "input": None, "file": None}
    expected = chat_tokens(bpe, CHAT)

    ((ids, labels),) = documents(content(**row), source("longalpaca"), bpe)

    np.testing.assert_array_equal([ids, labels], expected)


def test_rows_of_yours_are_chats_or_texts(bpe):
    ((chat, labels),) = documents(content(messages=CHAT), source("jsonl"), bpe)
    ((text, own),) = documents(content(text="the object"), source("jsonl"), bpe)

    np.testing.assert_array_equal([chat, labels], chat_tokens(bpe, CHAT))
    assert text.tolist() == bpe("the object")["input_ids"]
    assert own is text


@pytest.mark.parametrize(("clues", "expected"), [("abc", 3), (4, 4)])
def test_supporting_passages_are_listed_or_counted(clues, expected):
    row = {**LONGMIT, "all_docs": [*"abcd"], "clue_docs": [*clues] if isinstance(clues, str) else clues}
    assert supporting(content(**row), source("longmit")) == expected


@pytest.mark.parametrize(("lengths", "there"), [([], "cd"), ([4000], "cdx")])
def test_supporting_passages_count_once_and_where_the_document_has_them(bpe, lengths, there):
    passages = {name: f"passage {name} " + "of some words " * 9 for name in "abcdx"}
    row = {**LONGMIT, "all_docs": [{"content": passages[n]} for n in "abcd" * 40 if lengths or n not in "ab"]}
    row["all_docs"] += [{"content": f"{number} " + "other words " * 40} for number in range(40)]
    row["clue_docs"] = [{"content": passages[name], "id": number} for number, name in enumerate("ccxd")]

    counted = supporting(content(**row), source("longmit", lengths=lengths))
    ((ids, _),) = documents(content(**row), source("longmit", lengths=lengths, min_tokens=1, max_tokens=None), bpe)

    assert counted == len(there)
    text = bpe.decode(ids)
    assert {name for name in "cdx" if passages[name].strip() in text} == {*there}
    assert not lengths or text.count(passages["c"].strip()) == 1


REJECTED = {
    "not JSON": ("longmit", b'{"question": ', "bad row", "not JSON: Expecting value"),
    "no object": ("longmit", b"[1]", "bad row", "not a JSON object"),
    "no question": ("longmit", content(**{**LONGMIT, "question": ""}), "bad row", "'question' must be a string"),
    "no answer": ("longmit", content(**{**LONGMIT, "answer": None}), "bad row", "'answer' must be a string"),
    "half a surrogate": ("longmit", b'{"type": "\\ud800"}', "bad row", "'type' must be a string of valid"),
    "no type": ("longmit", content(**{**LONGMIT, "type": None}), "bad row", "'type' must be a string"),
    "no language": ("longmit", content(**{**LONGMIT, "language": 1}), "bad row", "'language' must be a string"),
    "Chinese": (
        "longmit",
        content(**{**LONGMIT, "language": "zh"}),
        "other language",
        r"'zh' is none of languages=\['en'\]",
    ),
    "no passages": ("longmit", content(**{**LONGMIT, "all_docs": []}), "bad row", "'all_docs' must be a list"),
    "a passage without text": (
        "longmit",
        content(**{**LONGMIT, "all_docs": [{"content": "p"}, {"text": "p"}]}),
        "bad row",
        r"'all_docs\[1\]\.content' must be a string",
    ),
    "too short": ("longalpaca", content(instruction="q", output="a"), "too short", "fewer than min_tokens=50"),
    "too long": ("longalpaca", content(instruction="q" * 200, output="a"), "too long", "more than max_tokens=90"),
    "input_ids": ("jsonl", content(input_ids=[1], labels=[1]), "bad row", "train on them with data=jsonl"),
    "neither": ("jsonl", content(title="t"), "bad row", "a row needs 'text', 'messages'"),
    "no text": ("jsonl", content(text=""), "bad row", "'text' must be a string"),
    "no assistant": ("jsonl", content(messages=CHAT[:1]), "bad row", "no message is the assistant's"),
    "a short book": ("pg19", {"text": "a book"}, "too short", "fewer than seq_length=60"),
    "no text in a book": ("pg19", {"text": None}, "bad row", "'text' must be a string"),
    "bytes": ("pg19", b"\xff", "bad row", "not UTF-8 text"),
}


@pytest.mark.parametrize("what", REJECTED)
def test_a_row_that_gives_nothing_says_why(byte, what):
    name, row, kind, message = REJECTED[what]
    lengths = {"pg19": {"seq_length": 60}, "longalpaca": {"min_tokens": 50, "max_tokens": 90}}.get(name, {})

    with pytest.raises(RejectedError, match=message) as raised:
        documents(row, source(name, **lengths), byte)

    assert raised.value.kind == kind


@pytest.mark.parametrize(
    ("clues", "kind"), [(["p"], "other evidence"), (7, "other evidence"), (None, "bad row"), (True, "bad row")]
)
def test_a_number_of_supporting_passages_that_is_not_asked_for_is_rejected(clues, kind):
    with pytest.raises(RejectedError) as raised:
        supporting(content(**LONGMIT, clue_docs=clues), source("longmit"))

    assert raised.value.kind == kind


@pytest.mark.parametrize("key", ["question", "answer", "passages", "evidence", "type", "language"])
def test_a_field_that_the_rows_do_not_have_is_an_error_that_names_its_key(key):
    longmit = source("longmit")
    name = getattr(longmit.fields, key)
    fields = ("question", "answer", "all_docs", "clue_docs", "type", "language")
    row = {field: "x" for field in fields if field != name}

    with pytest.raises(
        ValueError, match=f"fields.{key}={name} is no field of the rows, which have .*: set fields.{key}"
    ):
        check_fields(content(**row), longmit)


def test_a_parquet_file_without_the_texts_column_is_an_error_that_names_its_key():
    with pytest.raises(ValueError, match=r"fields\.text=text is no field of the rows, which have content"):
        check_fields({"content": "a book"}, source("pg19"))


def test_rows_of_ones_own_and_a_first_row_that_is_broken_are_no_error():
    check_fields(content(title="t"), source("jsonl"))
    check_fields(b"{", source("longmit"))
    check_fields(b"a book", Source(kind=Kind.books))
