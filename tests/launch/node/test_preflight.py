"""Faults of nodes, found by two ranks on two made-up nodes and named before anything trains."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_cdt.config import Accelerator, Config, Export, Init, load, save
from tests.ranks import on_ranks


def run(output: Path, **changes: Any) -> Config:
    config = Config(output=str(output), **changes)
    config.trainer.num_nodes, config.trainer.accelerator = 2, Accelerator.cpu
    return config


def preflight(configs: list[Config], versions: dict[str, str]) -> tuple[int, str]:
    """On one rank, the first of its node: the exit code, and what it says."""
    import contextlib
    import io

    from nemo_cdt.launch.node import preflight as ours

    rank = int(os.environ["RANK"])
    if rank == 1:
        real = ours.versions
        ours.versions = lambda: real() | versions
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            came_back = {"TORCHELASTIC_RESTART_COUNT": str(1 - rank)}  # the second node did, and counts anew
            ours.preflight(configs[rank], os.environ | {"LOCAL_RANK": "0"} | came_back)
        except SystemExit as exit:
            return int(str(exit.code)), said.getvalue()
    return 0, said.getvalue()


def on_two_nodes(*configs: Config, versions: dict[str, str] | None = None) -> tuple[list[int], str]:
    found = on_ranks(preflight, 2, list(configs), versions or {})
    assert found[1][1] == ""
    return [code for code, _ in found], found[0][1]


def test_fit_nodes_leave_the_record_of_the_run_and_nothing_else(tmp_path):
    config = run(tmp_path / "run")

    assert on_two_nodes(config, config) == ([0, 0], "")
    assert load(tmp_path / "run/config.yaml") == replace(config, resume=True)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_every_fault_of_every_node_is_a_line(tmp_path):
    (tmp_path / "file").touch()
    blind = run(tmp_path / "file/run", init=Init(hf=str(tmp_path / "nowhere")))

    codes, said = on_two_nodes(run(tmp_path / "run"), blind, versions={"torch": "1.0"})

    assert codes == [2, 2]
    assert re.search(r"preflight: \S+ \(rank 1\): init.hf=\S+nowhere is no folder", said)
    assert re.search(r"preflight: \S+ \(rank 1\): output=\S+ is not writable: Not a directory", said)
    assert re.search(r"preflight: \S+ \(rank 1\) has torch 1.0, \S+ has 2", said)
    assert "rank 0): " not in said


def test_an_output_that_the_nodes_do_not_share_is_noticed(tmp_path):
    codes, said = on_two_nodes(run(tmp_path / "here"), run(tmp_path / "there"))

    assert codes == [2, 2]
    assert "does not see in output what rank 0 wrote: set output to a shared folder" in said


@pytest.mark.parametrize(("resume", "code"), [(False, 2), (True, 0)])
def test_the_output_of_another_run_is_refused_unless_it_is_resumed(tmp_path, resume, code):
    other = run(tmp_path / "run", name="other")
    save(other, tmp_path / "run/config.yaml")
    config = run(tmp_path / "run", resume=resume)

    codes, said = on_two_nodes(config, config)

    assert codes == [code, code]
    assert ("already holds a run: set resume=true" in said) == (code == 2)


def test_an_attempt_of_the_same_run_goes_on(tmp_path):
    config = run(tmp_path / "run")

    assert [on_two_nodes(config, config) for _ in range(2)] == [([0, 0], "")] * 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"export": Export(hf="{run}/checkpoints")}, "is where the run keeps its checkpoints"),
        ({"export": Export(hf="{run}/../mine")}, "is not empty, and no nemo_cdt_export.json says that notes.txt in it"),
        (
            {"init": Init(hf="{run}/../mine"), "output": "{run}/../mine"},
            "mine: set output to a folder of the run's own",
        ),
    ],
)
def test_what_the_submitting_machine_could_not_see_is_refused_on_the_nodes(tmp_path, changes, expected):
    for folder in ("mine", "run"):  # `run/../mine` is looked at by both ranks, of which one may make `run` meanwhile
        (tmp_path / folder).mkdir()
    (tmp_path / "mine/notes.txt").touch()
    config = run(tmp_path / "run", **{key: value for key, value in changes.items() if key != "output"})
    config.output = changes.get("output", config.output).format(run=tmp_path / "run")
    for section in (config.export, config.init):
        section.hf = section.hf and section.hf.format(run=tmp_path / "run")

    codes, said = on_two_nodes(config, config)

    assert codes == [2, 2]
    assert expected in said
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_file_of_the_users_in_the_folder_of_preflight_stays(tmp_path):
    (tmp_path / "run/.preflight").mkdir(parents=True)
    (tmp_path / "run/.preflight/notes.txt").touch()
    config = run(tmp_path / "run")

    assert on_two_nodes(config, config) == ([0, 0], "")
    assert [path.name for path in (tmp_path / "run/.preflight").iterdir()] == ["notes.txt"]
