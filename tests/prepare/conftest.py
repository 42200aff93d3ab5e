"""Small files of exactly the formats in which the data sets are published."""

import json
import random

import pyarrow
import pyarrow.parquet
import pytest

from nemo_cdt.data.haystack import load_haystack
from tests.data.conftest import bpe, bpe_folder, byte  # noqa: F401

SENTENCES = load_haystack(None)[:400]


def text(rng, characters):
    sentences = [rng.choice(SENTENCES)]
    while sum(map(len, sentences)) < characters:
        sentences.append(rng.choice(SENTENCES))
    return " ".join(sentences)


def write_books(folder, *, books=24, seed=0, longest=1500):
    """The Hub's files of emozilla/pg19: two of train in row groups, and one of another split."""
    rng = random.Random(seed)
    rows = [
        {
            "short_book_title": f"book {number}",
            "publication_date": 1850 + number,
            "url": f"https://www.gutenberg.org/ebooks/{number}",
            "text": text(rng, rng.randrange(20, longest)),
        }
        for number in range(books)
    ]
    half = books // 2
    (folder / "data").mkdir(parents=True)
    for name, some in (("train-00000-of-00002", rows[:half]), ("train-00001-of-00002", rows[half:])):
        table = pyarrow.Table.from_pylist(some)
        pyarrow.parquet.write_table(table, folder / f"data/{name}-ab12.parquet", row_group_size=5)
    other = pyarrow.Table.from_pylist([{**rows[0], "text": "of the test split"}])
    pyarrow.parquet.write_table(other, folder / "data/test-00000-of-00001-ab12.parquet")
    return [row["text"] for row in rows]


def write_longmit(file, *, rows=60, seed=0, longest=400, chinese=0):
    """donmaclean/LongMIT-128K: JSON lines; 1 to 7 supporting passages; the last ``chinese`` rows are."""
    rng = random.Random(seed)
    made = []
    for number in range(rows):
        supporting = number % 7 + 1
        passages = [{"id": f"{number}-{i}", "content": text(rng, rng.randrange(20, longest))} for i in range(8)]
        made.append(
            {
                "id": number,
                "type": ("inter_doc", "intra_doc", "extractive")[number % 3],
                "language": "zh" if number >= rows - chinese else "en",
                "all_docs": passages,
                "clue_docs": passages[:supporting],
                "question": f"What does passage {number} say?",
                "answer": f"That {number}.",
            }
        )
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made))
    return made


def write_longalpaca(file, *, rows=20, seed=0):
    """Yukang/LongAlpaca-12k: one JSON array."""
    rng = random.Random(seed)
    made = [
        {
            "instruction": f'Below is {{a}} "paper" [{number}].\n{text(rng, rng.randrange(20, 1500))} What of it?',
            "output": f"It is number {number} \\ of 20.",
            "input": None,
            "file": None,
        }
        for number in range(rows)
    ]
    file.write_text(json.dumps(made))
    return made


@pytest.fixture
def books(tmp_path):
    write_books(tmp_path / "pg19")
    return tmp_path / "pg19"


@pytest.fixture
def longmit(tmp_path):
    write_longmit(tmp_path / "longmit.jsonl")
    return tmp_path / "longmit.jsonl"


@pytest.fixture
def longalpaca(tmp_path):
    write_longalpaca(tmp_path / "LongAlpaca-12k.json")
    return tmp_path / "LongAlpaca-12k.json"
