"""A copy of a run is another run: made with the real `cp -a`."""

import shutil
import subprocess

import pytest

from nemo_cdt.checkpoint.exported import ExportError, replacing, require_replaceable
from nemo_cdt.checkpoint.run_id import RUN_ID, made_run_id, run_id
from nemo_cdt.tracking import keep_id, known_ids


@pytest.fixture
def run(tmp_path):
    """With an export in it, and an id at a logger's server."""
    output = tmp_path / "run"
    output.mkdir()
    keep_id(output, "mlflow", "abc")
    with replacing(output / "hf", output) as folder:
        folder.mkdir()
        (folder / "model.safetensors").write_text("weights")
    return output


def test_a_run_keeps_its_id_and_one_that_is_moved_too(run, tmp_path):
    known = run_id(run)
    assert known == made_run_id(run)
    moved = tmp_path / "elsewhere/moved"
    moved.parent.mkdir()
    shutil.move(run, moved)
    assert run_id(moved) == made_run_id(moved) == known
    assert known_ids(moved) == {"mlflow": "abc"}
    require_replaceable(moved / "hf", moved)


def test_a_copy_is_another_run_that_replaces_nothing_of_the_original_and_logs_elsewhere(run, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", run, copy], check=True)
    assert run_id(copy) is None
    assert known_ids(copy) == {}
    with pytest.raises(ExportError, match="was exported by another run"):
        require_replaceable(run / "hf", copy)
    assert made_run_id(copy) != run_id(run)
    keep_id(copy, "mlflow", "def")
    assert (known_ids(copy), known_ids(run)) == ({"mlflow": "def"}, {"mlflow": "abc"})


def test_an_id_of_before_is_the_folders_own(run):
    (run / RUN_ID).write_text('{"run": "old"}')
    assert run_id(run) == made_run_id(run) == "old"
