import json

import numpy as np
import pytest

from nemo_cdt.prepare.files import LINE, SIZE, find_files, index_of, read_rows
from nemo_cdt.prepare.settings import Kind
from tests.prepare.conftest import write_books, write_longalpaca, write_longmit


def some(files, rows):
    return list(read_rows(files, index_of(files)[rows]))


def test_of_a_copy_of_the_hub_the_training_split_is_read_alone(tmp_path):
    texts = write_books(tmp_path)
    files = find_files(tmp_path, Kind.books)

    assert [file.name[:14] for file in files] == ["train-00000-of", "train-00001-of"]
    assert [row["text"] for row in some(files, slice(None))] == texts


def test_a_few_rows_of_a_parquet_file_are_read_across_its_row_groups(tmp_path):
    texts = write_books(tmp_path)
    picked = [0, 4, 5, 11, 12, 23]

    assert [row["text"] for row in some(find_files(tmp_path, Kind.books), picked)] == [texts[row] for row in picked]


def test_text_files_are_a_book_each(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first é")
    files = find_files(tmp_path, Kind.books)

    assert some(files, slice(None)) == ["first é".encode(), b"second"]
    assert index_of(files)[:, SIZE].tolist() == [8, 6]


def test_lines_are_rows_and_blank_ones_are_not(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n\n  \n{"a": 2}\n{"a": 3}')
    index = index_of([file])

    assert index[:, LINE].tolist() == [1, 4, 5]
    assert [json.loads(row) for row in read_rows([file], index[1:])] == [{"a": 2}, {"a": 3}]


def test_the_rows_of_an_array_are_found_among_brackets_quotes_and_escapes(tmp_path):
    file = tmp_path / "rows.json"
    expected = [
        {"text": 'brackets ]}[{ and "quotes" and \\', "list": [[1, {"a": []}], "]"]},
        {"text": "\n\u2028 é 🦊"},
        "no object",
        {},
    ]
    for style in ({}, {"indent": 2}, {"ensure_ascii": False}):
        file.write_text(json.dumps(expected, **style))

        assert [json.loads(row) for row in some([file], slice(None))] == expected
    assert index_of([file])[:, LINE].tolist() == [1, 2, 3, 4]


def test_published_json_is_read_row_by_row(tmp_path):
    array = write_longalpaca(tmp_path / "a.json")
    lines = write_longmit(tmp_path / "b.jsonl")

    assert [json.loads(row) for row in some([tmp_path / "a.json"], [0, 7, 19])] == [array[0], array[7], array[19]]
    assert [json.loads(row) for row in some([tmp_path / "b.jsonl"], [5, 59])] == [lines[5], lines[59]]


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("a.json", '[{"a": 1}, {"a": "', Kind.questions, "a.json: not a whole JSON array, it ends within row 2"),
        ("a.jsonl", "\n \n", Kind.rows, "a.jsonl: no rows"),
        ("a.jsonl", "", Kind.rows, "a.jsonl is empty"),
        ("a.parquet", "text", Kind.books, "a.parquet: not a parquet file"),
        ("a.txt", "text", Kind.rows, r"a.txt is no .jsonl or .json file"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(tmp_path, name, content, kind, message):
    (tmp_path / name).write_text(content)

    with pytest.raises(ValueError, match=message):
        index_of(find_files(tmp_path / name, kind))


def test_a_folder_without_such_files_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.parquet or \.txt file"):
        find_files(tmp_path, Kind.books)


def test_an_index_knows_the_file_of_each_row(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"n": 0}\n{"n": 1}\n')

    np.testing.assert_array_equal(index_of(find_files(tmp_path, Kind.rows))[:, :2], [[0, 1], [0, 2], [1, 1], [1, 2]])
