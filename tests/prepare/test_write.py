import json
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from nemo_cdt.data.documents import IGNORE
from nemo_cdt.megatron.indexed import IndexedDocuments
from nemo_cdt.prepare.request import read
from nemo_cdt.prepare.write import describe, prepare
from nemo_cdt.prepared import fingerprint, read_summary
from tests import jobs
from tests.prepare.conftest import write_longalpaca, write_longmit
from tests.ranks import started

MIX = ["longmit.samples=15", "longmit.validation_samples=5", "longalpaca.samples=4", "longalpaca.validation_samples=1"]
LENGTHS = [f"{name}.{key}" for name in ("longmit", "longalpaca") for key in ("min_tokens=20", "max_tokens=4000")]


def arguments(folder: Path, tokenizer: Path | str, output: str, *more: str) -> list[str]:
    inputs = [f"longmit.input={folder}/longmit.jsonl", f"longalpaca.input={folder}/LongAlpaca-12k.json"]
    return ["alignment", *inputs, f"output={output}", f"tokenizer={tokenizer}", *MIX, *LENGTHS, *more]


def prepared(name: str, *overrides: str) -> Path:
    return prepare(name, read(name, overrides), "nemo-cdt prepare")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(longmit, longalpaca, tmp_path):
    return tmp_path


def test_a_mix_is_shuffled_counted_and_read_back(folder, bpe_folder, bpe):
    output = prepared(*arguments(folder, bpe_folder, f"{folder}/out"))

    summary = read_summary(output)
    train, held_out = (IndexedDocuments(output / split) for split in ("train", "validation"))
    assert (len(train), len(held_out)) == (19, 6)
    alpaca = ["Below is" in bpe.decode(train[number].input_ids) for number in range(19)]
    assert sum(alpaca) == 4
    assert alpaca != sorted(alpaca)
    for number in range(19):
        document = train[number]
        answer = bpe.decode(document.input_ids[document.labels != IGNORE])
        assert answer.endswith(".<|eot|>")
        assert answer.startswith(("That ", "It is number "))
        assert train.length(number) == len(document.input_ids)
    assert summary["train"]["documents"] == 19
    assert summary["train"]["tokens"] == sum(train.length(number) for number in range(19))
    assert summary["train"]["labelled"] == sum((train[number].labels[1:] != IGNORE).sum() for number in range(19))
    assert sum(summary["train"]["lengths"].values()) == 19
    assert summary["tokenizer"] == {"path": str(bpe_folder), "fingerprint": fingerprint(str(bpe_folder)), "size": 2000}
    longmit, longalpaca = summary["sources"]["longmit"], summary["sources"]["longalpaca"]
    assert longmit["supporting_passages"] == {str(number): 3 for number in range(2, 7)}
    assert longmit["dropped"] == {"other evidence": 16}
    assert longmit["languages"] == {"en": 15}
    assert sum(longmit["types"].values()) == 15
    assert longmit["types"].keys() <= {"inter_doc", "intra_doc", "extractive"}
    assert (longalpaca["languages"], longalpaca["types"], longalpaca["supporting_passages"]) == ({}, {}, {})
    assert longmit["files"] == {f"{folder}/longmit.jsonl": (folder / "longmit.jsonl").stat().st_size}
    assert longmit["licence"] == "Apache-2.0"
    assert longalpaca["licence"].startswith("none on the data set's card")
    assert summary["seed"] == 42
    assert {"megatron-core", "transformers"} <= summary["versions"].keys()


def test_rejects_name_their_file_line_and_reason(tmp_path):
    rows = ['{"text": "good enough"}', "", "{", '{"text": ""}', '{"text": "x"}']
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))

    output = prepared("jsonl", f"input={tmp_path}/rows.jsonl", f"output={tmp_path}/out", "tokenizer=byte")

    rejects = [json.loads(line) for line in (output / "rejects.jsonl").read_text().splitlines()]
    assert {reject["source"] for reject in rejects} == {f"{tmp_path}/rows.jsonl"}
    assert [reject["line"] for reject in rejects] == [3, 4, 5]
    assert [reject["reason"].partition(":")[0] for reject in rejects] == [
        "not JSON",
        "'text' must be a string of valid Unicode that is not empty",
        "1 tokens are fewer than min_tokens=2",
    ]
    assert not (output / "validation.bin").exists()


def test_what_is_taken_and_dropped_of_longmit_is_said_and_every_rejected_row_has_its_line(tmp_path):
    rows = write_longmit(tmp_path / "longmit.jsonl", chinese=20)
    some = ["tokenizer=byte", "samples=20", "validation_samples=0", "min_tokens=2", "max_tokens=null"]

    output = prepared("longmit", f"input={tmp_path}/longmit.jsonl", f"output={tmp_path}/out", *some)

    rejects = [json.loads(line) for line in (output / "rejects.jsonl").read_text().splitlines()]
    assert {reject["line"] for reject in rejects if "'zh' is none of" in reject["reason"]} == {*range(41, 61)}
    dropped = read_summary(output)["sources"]["longmit"]["dropped"]
    assert dropped == {
        "other language": 20,
        "other evidence": sum(len(row["clue_docs"]) in (1, 7) for row in rows[:40]),
    }
    told = describe(output)
    assert "documents by languages: 20 of en" in told
    assert "documents by types: " in told
    assert "documents by supporting passages: 4 of 2, 4 of 3, 4 of 4, 4 of 5, 4 of 6" in told


def test_texts_and_books_are_stored_once_and_labelled_throughout(books, tmp_path):
    output = prepared(
        "pg19", f"input={books}", f"output={tmp_path}/out", "tokenizer=byte", "seq_length=100", "samples=9",
        "validation_samples=2",
    )  # fmt: skip

    documents = IndexedDocuments(output / "train")
    assert (output / "train.bin").stat().st_size == 4 * 9 * 100
    assert (documents[3].labels == documents[3].input_ids).all()
    assert read_summary(output)["train"]["labelled"] == 9 * 99


def test_killed_at_any_file_it_goes_on_to_the_same_bytes(folder, bpe_folder):
    expected = prepared(*arguments(folder, bpe_folder, f"{folder}/expected"))
    command = arguments(folder, bpe_folder, f"{folder}/out")
    killed = 0
    while True:
        process = started(jobs.prepare, folder, command, 2, bool(killed % 2))
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, (folder / "stderr").read_text()
        assert not (folder / "out").exists()
        killed += 1

    assert killed > 5
    found = contents(folder / "out")
    found["summary.json"] = contents(expected)["summary.json"]  # it holds the command
    assert found == contents(expected)
    assert not (folder / ".out.partial").exists()


def test_several_processes_killed_leave_none_and_go_on_to_the_same_bytes(folder, bpe_folder):
    expected = contents(prepared(*arguments(folder, bpe_folder, f"{folder}/expected")))
    command = arguments(folder, bpe_folder, f"{folder}/out", "workers=2")
    process = started(jobs.prepare, folder, command)
    while not list(folder.glob(".out.partial/longmit-examined-*.json")):
        assert process.is_alive(), (folder / "stderr").read_text()
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)

    os.kill(process.pid, signal.SIGKILL)
    process.join()

    assert psutil.wait_procs(children, timeout=20)[1] == []
    again = started(jobs.prepare, folder, command)
    again.join(60)
    assert again.exitcode == 0, (folder / "stderr").read_text()
    found = contents(folder / "out")
    found["summary.json"] = expected["summary.json"]
    assert found == expected
    assert "19 documents of" in (folder / "stdout").read_text()
    assert "longmit: tokenizing" in (folder / "stderr").read_text()


def test_unfinished_work_of_other_settings_is_not_taken_up(folder):
    process = started(jobs.prepare, folder, arguments(folder, "byte", f"{folder}/out"), 4)
    process.join(60)
    with pytest.raises(
        ValueError, match=r"\.out\.partial has the unfinished work of other settings \(seed\): repeat its"
    ):
        prepared(*arguments(folder, "byte", f"{folder}/out", "seed=7"))

    write_longalpaca(folder / "LongAlpaca-12k.json", seed=9)
    with pytest.raises(ValueError, match=r"other settings \(files\)"):
        prepared(*arguments(folder, "byte", f"{folder}/out"))


def test_an_output_that_is_there_or_being_made_is_left_alone(folder):
    command = arguments(folder, "byte", f"{folder}/out")
    (folder / ".out.partial").mkdir()
    with FileLock(folder / ".out.partial/lock"), pytest.raises(ValueError, match="another process is preparing it"):
        prepared(*command)
    (folder / "out").mkdir()
    prepared(*command)

    before = contents(folder / "out")
    with pytest.raises(ValueError, match="out already exists and is not empty: set a new folder"):
        prepared(*command)
    assert contents(folder / "out") == before


def test_questions_need_a_chat_template(folder, bpe_folder):
    base = Path(shutil.copytree(bpe_folder, folder / "base"))
    (base / "chat_template.jinja").unlink()

    with pytest.raises(ValueError, match="base has no chat template, which alignment needs: take that of an instruct"):
        prepared(*arguments(folder, base, f"{folder}/out"))


def test_a_mistake_leaves_nothing_behind(folder):
    for wrong, message in (
        ("longmit.fields.passages=docs", "longmit.fields.passages=docs is no field of the rows, which have id, type"),
        ("longmit.samples=500", "longmit: 44 documents in 60 rows, but samples=500"),
    ):
        with pytest.raises(ValueError, match=message):
            prepared(*arguments(folder, "byte", f"{folder}/out", wrong))
        assert {path.name for path in folder.iterdir()} == {"longmit.jsonl", "LongAlpaca-12k.json"}


def test_a_folder_of_somebody_elses_where_the_work_would_be_is_left_alone(folder):
    (folder / ".out.partial").mkdir()
    (folder / ".out.partial/notes.txt").write_text("mine")

    with pytest.raises(ValueError, match=r"\.out\.partial, where work is kept until it is done, has notes\.txt and no"):
        prepared(*arguments(folder, "byte", f"{folder}/out"))
    (folder / "out").mkdir()
    (folder / "out/summary.json").touch()
    with pytest.raises(ValueError, match="out already exists and is not empty"):
        prepared(*arguments(folder, "byte", f"{folder}/out"))

    assert contents(folder / ".out.partial").keys() == {"notes.txt"}
