import os
from contextlib import suppress

import pytest
import torch
from safetensors.torch import save_file

from nemo_cdt.utils.atomic_write import atomic_write, new_folder, traceless


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


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_in_a_folder_can_be_read_by_whom_the_umask_lets(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with new_folder(tmp_path / "a") as folder:
            save_file({"w": torch.zeros(2)}, folder / "model.safetensors")  # for its owner alone
    finally:
        os.umask(before)
    assert (tmp_path / "a/model.safetensors").stat().st_mode & 0o777 == mode


def test_an_empty_folder_is_taken_and_a_full_one_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as folder:
        (folder / "file").touch()
    with pytest.raises(ValueError, match="empty already exists and is not empty"), new_folder(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty/file").exists()


@pytest.mark.parametrize("name", ["link", "new/../empty"])
def test_a_folder_is_taken_by_any_name_that_leads_to_it(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")

    with new_folder(tmp_path / name) as folder:
        (folder / "file").touch()
    with pytest.raises(ValueError, match=f"{name} already exists and is not empty"), new_folder(tmp_path / name):
        pass

    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link"]
    assert (tmp_path / "link/file").exists()


def test_a_folder_and_a_file_of_an_earlier_process_of_the_same_id_are_in_nobodys_way(tmp_path):
    """In a container every start has the same few process ids."""
    (tmp_path / f".b.{os.getpid()}").mkdir()
    (tmp_path / f".f.{os.getpid()}").write_text("mine")

    with new_folder(tmp_path / "b") as folder:
        (folder / "file").touch()
    atomic_write(tmp_path / "f", "whole")

    assert (tmp_path / "b/file").exists()
    assert (tmp_path / f".f.{os.getpid()}").read_text() == "mine"


def test_of_a_start_that_fails_what_it_made_goes_and_what_was_there_stays(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/mine").touch()

    with suppress(KeyboardInterrupt), traceless(tmp_path, {"tokenizer", "init", "config.yaml", "*.log"}):
        (tmp_path / "init").mkdir()
        (tmp_path / "init/weights").touch()
        (tmp_path / "config.yaml").touch()
        (tmp_path / "rank0.log").touch()
        raise KeyboardInterrupt

    assert [path.name for path in tmp_path.rglob("*")] == ["tokenizer", "mine"]


def test_a_start_that_wrote_more_than_it_may_remove_keeps_all_and_one_that_ends_well_too(tmp_path):
    with suppress(SystemExit), traceless(tmp_path, {"config.yaml"}):
        (tmp_path / "config.yaml").touch()
        (tmp_path / "metrics.jsonl").touch()
        raise SystemExit(1)
    with traceless(tmp_path, {"init"}):
        (tmp_path / "init").touch()

    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "metrics.jsonl", "init"}
