from contextlib import suppress

import pytest

from nemo_cdt.folders import new_folder


def test_a_folder_appears_only_when_it_is_whole(tmp_path):
    with new_folder(tmp_path / "a/b") as folder:
        (folder / "file").write_text("whole")
        assert not (tmp_path / "a/b").exists()
    assert (tmp_path / "a/b/file").read_text() == "whole"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_nothing_remains_of_a_folder_whose_writing_failed(tmp_path):
    with suppress(ZeroDivisionError), new_folder(tmp_path / "b") as folder:
        (folder / "file").write_text("half")
        1 / 0  # noqa: B018
    assert not any(tmp_path.iterdir())


def test_an_empty_folder_is_taken_and_a_full_one_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as folder:
        (folder / "file").touch()
    with pytest.raises(ValueError, match="empty already exists and is not empty"), new_folder(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty/file").exists()
