import json
from collections import Counter

import numpy as np
import pytest

from nemo_cdt.prepare import work
from nemo_cdt.prepare.files import find_files
from nemo_cdt.prepare.gather import Gathered, gather, shares
from nemo_cdt.prepare.request import compose_prepare
from nemo_cdt.prepare.settings import Source
from nemo_cdt.prepare.work import Worker
from tests.prepare.conftest import write_books, write_longmit


@pytest.mark.parametrize(
    ("total", "rooms", "expected"),
    [
        (10, {2: 100, 3: 100, 4: 100}, {2: 4, 3: 3, 4: 3}),
        (10, {2: 1, 3: 100, 4: 2}, {2: 1, 3: 7, 4: 2}),
        (100, {2: 1, 3: 2}, {2: 1, 3: 2}),
        (0, {2: 1, 3: 2}, {2: 0, 3: 0}),
        (float("inf"), {2: 1, 3: 2}, {2: 1, 3: 2}),
        (5, {0: float("inf")}, {0: 5}),
        (5, {}, {}),
    ],
)
def test_shares_are_equal_but_no_larger_than_what_there_is(total, rooms, expected):
    assert shares(total, rooms) == expected


def gathered(name, path, folder, *, seed=0, tokenizer="byte", **values) -> Gathered:
    settings = compose_prepare(name, [])
    source = Source(**{**{key: getattr(settings, key) for key in Source.__dataclass_fields__}, **values})
    folder.mkdir(exist_ok=True)
    return gather(name, Worker(source, find_files(path, source.kind), tokenizer, seed), folder=folder, workers=1)


def texts(places):
    return [bytes(place.load()[0].clip(0, 255).astype(np.uint8)).decode(errors="replace") for place in places]


def test_chunks_stay_inside_their_books_and_no_book_is_both_trained_on_and_held_out(tmp_path):
    whole = write_books(tmp_path / "pg19")

    found = gathered("pg19", tmp_path / "pg19", tmp_path / "work", samples=20, validation_samples=3, seq_length=200)

    def book_of(chunk):
        (book,) = [number for number, text in enumerate(whole) if chunk in text]
        return book

    train, held_out = [[book_of(chunk) for chunk in texts(part)] for part in (found.train, found.held_out)]
    assert (len(train), len(held_out)) == (20, 3)
    assert not {*train} & {*held_out}
    assert {place.length for place in found.train} == {200}
    assert len({*texts(found.train)}) == 20
    assert found.read < 24  # books are read for as long as it takes


def test_what_there_is_can_be_asked_for_and_one_more_cannot(tmp_path):
    whole = write_books(tmp_path / "pg19")
    chunks = [len(text.encode()) // 400 for text in whole]
    asked = {"samples": sum(chunks), "validation_samples": 0, "seq_length": 400}

    found = gathered("pg19", tmp_path / "pg19", tmp_path / "a", **asked)

    assert len({*texts(found.train)}) == len(found.train) == sum(chunks)
    assert Counter(kind for _, kind, _ in found.rejected) == {"too short": chunks.count(0)}
    with pytest.raises(ValueError, match=rf"pg19: {sum(chunks)} documents in 24 rows, but samples={sum(chunks) + 1} "):
        gathered("pg19", tmp_path / "pg19", tmp_path / "b", **{**asked, "samples": sum(chunks) + 1})


def longmit(tmp_path, folder="work", **values):
    file = tmp_path / "longmit.jsonl"
    rows = write_longmit(file)
    return rows, gathered("longmit", file, tmp_path / folder, **{"min_tokens": 2, "max_tokens": None, **values})


def asked(place):
    return int(texts([place])[0].rpartition("passage ")[2].split()[0])


def test_numbers_of_supporting_passages_are_balanced_and_others_rejected(tmp_path):
    rows, found = longmit(tmp_path, samples=20, validation_samples=5)

    counts = [Counter(len(rows[asked(place)]["clue_docs"]) for place in part) for part in (found.train, found.held_out)]
    assert counts == [dict.fromkeys(range(2, 7), 4), dict.fromkeys(range(2, 7), 1)]
    assert found.counted("supporting") == dict.fromkeys(range(2, 7), 4)
    assert {(kind, len(rows[row]["clue_docs"])) for row, kind, _ in found.rejected} == {
        ("other evidence", 1),
        ("other evidence", 7),
    }


def test_lengths_are_the_tokenizers_and_what_is_outside_is_replaced(tmp_path):
    _, all_of_them = longmit(tmp_path, "all", samples=None, validation_samples=0)
    lengths = sorted(place.length for place in all_of_them.train)
    low, high = lengths[10], lengths[30]

    _, found = longmit(tmp_path, samples=15, validation_samples=0, min_tokens=low, max_tokens=high)

    assert all(low <= place.length <= high for place in found.train)
    assert {"too short", "too long"} <= {kind for _, kind, _ in found.rejected}


def test_a_class_that_is_short_leaves_its_share_to_the_others(tmp_path):
    rows, found = longmit(tmp_path, samples=40, validation_samples=0)

    there = Counter(len(row["clue_docs"]) for row in rows)
    assert sum(found.counted("supporting").values()) == 40
    assert all(count <= there[key] for key, count in found.counted("supporting").items())


def test_balance_is_among_the_rows_of_the_languages_that_are_taken(tmp_path):
    rows = write_longmit(tmp_path / "longmit.jsonl", chinese=20)
    some = {"min_tokens": 2, "max_tokens": None, "samples": 20, "validation_samples": 0}

    def found(folder, **values):
        return gathered("longmit", tmp_path / "longmit.jsonl", tmp_path / folder, **some, **values)

    english, both = found("en"), found("both", languages=None)

    assert english.counted("language") == {"en": 20}
    assert english.counted("supporting") == dict.fromkeys(range(2, 7), 4)
    assert Counter(kind for _, kind, _ in english.rejected)["other language"] == 20
    assert english.counted("type") == Counter(rows[asked(place)]["type"] for place in english.train)
    assert both.counted("language").keys() == {"en", "zh"}


def test_picked_passages_fill_the_lengths_that_are_drawn_and_are_the_same_in_any_number_of_tasks(tmp_path, monkeypatch):
    lengths = {"lengths": [1200, 2600], "samples": None, "validation_samples": 0, "evidence": [2, 3]}
    rows, found = longmit(tmp_path, "one", **lengths)

    drawn = Counter(next(length for length in lengths["lengths"] if place.length <= length) for place in found.train)
    assert drawn.keys() == {1200, 2600}
    for place in found.train:
        (text,), row = texts([place]), rows[asked(place)]
        assert all(passage["content"] in text for passage in row["clue_docs"])
        assert not all(passage["content"] in text for passage in row["all_docs"])
    assert "too few passages" in {kind for _, kind, _ in found.rejected}
    monkeypatch.setattr(work, "TASK_ROWS", 2)
    assert texts(longmit(tmp_path, "many", **lengths)[1].train) == texts(found.train)
    assert texts(longmit(tmp_path, "other", **lengths, seed=1)[1].train) != texts(found.train)


def test_the_seed_decides_which_rows_are_taken(tmp_path):
    first, again, other = (
        longmit(tmp_path, f"w{number}", samples=10, validation_samples=0, seed=seed)[1]
        for number, seed in enumerate([1, 1, 2])
    )

    assert texts(first.train) == texts(again.train)
    assert {*texts(first.train)} != {*texts(other.train)}


def test_how_rows_are_cut_into_tasks_changes_nothing(tmp_path, monkeypatch):
    expected = texts(longmit(tmp_path, "one", samples=12, validation_samples=3)[1].train)
    monkeypatch.setattr(work, "TASK_ROWS", 2)

    assert texts(longmit(tmp_path, "many", samples=12, validation_samples=3)[1].train) == expected
    assert len(list((tmp_path / "many").glob("longmit-examined-*.json"))) == 30


def test_tasks_are_rows_in_the_order_of_the_files_up_to_so_many_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "TASK_BYTES", 100)
    monkeypatch.setattr(work, "TASK_ROWS", 3)
    index = np.array([[0, line, 0, size] for line, size in enumerate([60, 30, 30, 500, 10, 10, 10, 10])])

    tasks = work.cut(tmp_path, "stage", np.array([7, 1, 0, 2, 3, 4, 5, 6]), index)

    assert [task.rows.tolist() for task in tasks] == [[0, 1], [2], [3], [4, 5, 6], [7]]
    assert work.cut(tmp_path, "stage", np.array([], dtype=np.int64), index) == []


def test_too_few_rows_are_an_error_that_counts_why(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "long enough"}\n{"text": "short"}\n{"text": ""}\n')

    with pytest.raises(
        ValueError,
        match=r"1 documents in 3 rows, but samples=2 .*1 too short, 1 bad row; \S+/rows.jsonl:2: 5 tokens are fewer "
        r"than min_tokens=6; \S+/rows.jsonl:3: 'text' must be",
    ):
        gathered("jsonl", tmp_path / "rows.jsonl", tmp_path / "work", samples=2, min_tokens=6)


def test_every_row_of_a_file_may_be_taken_in_an_order_of_the_seeds(tmp_path):
    lines = [json.dumps({"text": f"row {number:02d}"}) for number in range(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))

    found = gathered("jsonl", tmp_path / "rows.jsonl", tmp_path / "work", validation_samples=4)

    assert (len(found.train), len(found.held_out), found.read) == (26, 4, 30)
    assert sorted(texts(found.train + found.held_out)) == [f"row {number:02d}" for number in range(30)]
