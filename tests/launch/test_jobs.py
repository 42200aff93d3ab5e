"""What is said of a job before it is submitted, or in place of that."""

import io
from pathlib import Path

import pytest

from nemo_cdt.launch.jobs import launch_job
from tests.launch.composed import AWAY, MODEL, run


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own: a checkout in which somebody ran the demo holds runs/tiny."""
    monkeypatch.chdir(tmp_path)


def test_a_dry_run_shows_a_job_whose_data_are_not_there_and_says_so(capsys):
    wanted = ("launcher=slurm", "experiment=alignment_llama31_70b_128k", "launcher.submit=sbatch")

    launch_job(run(*wanted, "launcher.dryrun=true"))

    shown = capsys.readouterr()
    assert shown.out.startswith("#!/bin/bash")
    assert shown.err.startswith("note: as it stands this job would not start: data.path=null")
    with pytest.raises(ValueError, match=r"data\.path=null"):
        run(*wanted)


@pytest.mark.parametrize("submit", ["sbatch", "nemo_run"])
def test_a_dry_run_without_a_site_marks_what_is_missing_and_a_submission_is_refused(
    capsys, tmp_path, monkeypatch, submit
):
    monkeypatch.setattr("sys.stdin", io.StringIO())  # NeMo-Run's shell reads it
    (tmp_path / "none.yaml").write_text("")
    wanted = ("launcher=slurm", f"launcher.submit={submit}")

    launch_job(run(*wanted, "launcher.dryrun=true", site=tmp_path / "none.yaml"))

    shown = capsys.readouterr()
    for key in ("account", "partition"):
        assert f"#SBATCH --{key}=SET_LAUNCHER_{key.upper()}\n" in shown.out
        said = (
            f"note: launcher.{key} is missing, and the script has SET_LAUNCHER_{key.upper()} in its place: set {key} "
        )
        assert f"{said}in {tmp_path}/none.yaml, or launcher.{key} here, to submit it\n" in shown.err
    with pytest.raises(ValueError, match=r"launcher\.account is missing"):
        run(*wanted, site=tmp_path / "none.yaml")
    typed = ("launcher.account=SET_LAUNCHER_ACCOUNT", "launcher.partition=h100")
    with pytest.raises(ValueError, match=r"launcher\.account=SET_LAUNCHER_ACCOUNT is the placeholder of a dry run"):
        run(*wanted, *typed, site=tmp_path / "none.yaml")


def test_a_dry_run_for_a_cluster_elsewhere_needs_nothing_of_it_here(capsys, tmp_path):
    wanted = ("experiment=rows_llama31_8b_32k", *MODEL, "launcher.submit=sbatch", "launcher.dryrun=true")

    launch_job(run(*AWAY, *wanted))

    shown = capsys.readouterr()
    assert shown.out.startswith("#!/bin/bash")
    there = "data.path=data/rows.jsonl init.hf=models/llama model.tokenizer=models/llama"
    assert shown.err == f"note: not checked here: {there}: the job does\n"
    assert list(tmp_path.iterdir()) == []


def test_questions_that_do_not_fit_are_refused_before_submission(capsys):
    short = ("launcher=slurm", "launcher.submit=sbatch", "data.seq_length=512", "trainer.accelerator=cpu")
    expected = "data.seq_length=512 is too short for the facts: set at least 553"

    launch_job(run(*short, "launcher.dryrun=true"))
    assert f"note: as it stands this job would not start: {expected}\n" in capsys.readouterr().err
    with pytest.raises(ValueError, match=expected):
        launch_job(run(*short))


def test_a_dry_run_names_all_that_is_missing_and_what_has_no_effect(capsys, tmp_path):
    on_this_login_node = ("launcher=slurm", "experiment=rows_llama31_8b_32k", "launcher.submit=sbatch")

    launch_job(run(*on_this_login_node, *MODEL, "launcher.dryrun=true", "launcher.image=nemo.sqsh"))
    missing = [line.removeprefix("note: ") for line in capsys.readouterr().err.splitlines()]
    assert missing == [
        f"launcher.image={tmp_path}/nemo.sqsh is not on this machine: is it on the nodes?",
        *(f"as it stands this job would not start: {path} does not exist" for path in MODEL),
    ]

    launch_job(run(*on_this_login_node, *MODEL, "launcher.dryrun=true", "launcher.mounts=[/a:/b]", "launcher.user=me"))
    notes = capsys.readouterr().err
    assert "note: launcher.mounts=['/a:/b'] has no effect without launcher.image\n" in notes
    assert "note: launcher.user=me has no effect without launcher.host\n" in notes
