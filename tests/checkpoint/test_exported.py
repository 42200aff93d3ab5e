import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_cdt.checkpoint.exported import MARK, ExportError, replacing, require_replaceable


def export(folder: Path, output: Path, text: str, then: Callable[[Path], None] = lambda new: None) -> None:
    output.mkdir(parents=True, exist_ok=True)
    with replacing(folder, output) as new:
        (new / "sub").mkdir(parents=True)
        (new / "config.json").write_text(text)
        (new / "sub/file").write_text(text)
        then(new)


def test_an_export_is_replaced_by_the_run_that_made_it_also_where_that_has_moved(tmp_path):
    export(tmp_path / "hf", tmp_path / "run", "first")
    (tmp_path / "run").rename(tmp_path / "moved")
    export(tmp_path / "hf", tmp_path / "moved", "second, longer")

    assert (tmp_path / "hf/sub/file").read_text() == "second, longer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "moved"]
    with pytest.raises(ExportError, match=r"hf is not empty: .* was exported by another run"):
        export(tmp_path / "hf", tmp_path / "another", "")


def test_what_a_link_names_is_replaced_and_an_empty_folder_taken(tmp_path):
    (tmp_path / "disk/hf").mkdir(parents=True)
    (tmp_path / "hf").symlink_to("disk/hf")

    for text in ("first", "second"):
        export(tmp_path / "hf", tmp_path / "run", text)

    assert (tmp_path / "hf").is_symlink()
    assert (tmp_path / "disk/hf/config.json").read_text() == "second"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["hf"]


def a_file(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def another_size(folder: Path) -> None:
    (folder / "config.json").write_text("mine, changed")


def other_bytes(folder: Path) -> None:
    """As of a model that was trained further in its place."""
    file = folder / "config.json"
    file.write_bytes(bytes(reversed(file.read_bytes())))


def a_link(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("sub/file")


def an_empty_folder(folder: Path) -> None:
    (folder / "empty").mkdir()


def no_mark(folder: Path) -> None:
    (folder / MARK).unlink()


def no_json(folder: Path) -> None:
    (folder / MARK).write_text("[")


def no_list(folder: Path) -> None:
    (folder / MARK).write_text(json.dumps(json.loads((folder / MARK).read_text()) | {"files": 3}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (a_file, "notes.txt"),
        (another_size, "config.json"),
        (other_bytes, "config.json"),
        (a_link, "config.json"),
        (an_empty_folder, "empty"),
        (no_mark, "config.json"),
        (no_json, MARK),
        (no_list, MARK),
    ],
)
def test_a_folder_that_is_not_as_the_run_left_it_stays_and_what_would_be_lost_is_named(tmp_path, change, named):
    export(tmp_path / "hf", tmp_path / "run", "first")
    change(tmp_path / "hf")
    shutil.copytree(tmp_path / "hf", tmp_path / "expected", symlinks=True)

    with pytest.raises(ExportError, match=named):
        require_replaceable(tmp_path / "hf", tmp_path / "run")
    with pytest.raises(ExportError, match=named):
        export(tmp_path / "hf", tmp_path / "run", "second")

    assert contents(tmp_path / "hf") == contents(tmp_path / "expected")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "hf", "run"]


def test_what_comes_into_the_folder_while_a_model_is_exported_stays(tmp_path):
    export(tmp_path / "hf", tmp_path / "run", "first")

    def another(new: Path) -> None:
        a_file(tmp_path / "hf")

    with pytest.raises(ExportError, match=r"notes\.txt"):
        export(tmp_path / "hf", tmp_path / "run", "second", another)

    assert contents(tmp_path / "hf")["notes.txt"] == "mine"
    assert contents(tmp_path / "hf")["config.json"] == "first"


def test_an_export_that_fails_leaves_the_one_before_it(tmp_path):
    export(tmp_path / "hf", tmp_path / "run", "first")

    def fail(new: Path) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        export(tmp_path / "hf", tmp_path / "run", "second", fail)

    assert contents(tmp_path / "hf")["config.json"] == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "run"]


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else "" for path in folder.rglob("*")}
