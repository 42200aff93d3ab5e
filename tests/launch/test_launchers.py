"""What people take to a cluster from launchers/ is as this checkout has it."""

import re
from pathlib import Path

import pytest
import yaml

from nemo_cdt.config.launcher import LauncherName
from tests.launch.composed import run

FOLDER = Path(__file__).parents[2] / "launchers"
EXAMPLE = FOLDER / "site.example.yaml"
CLUSTERS = [LauncherName.slurm, LauncherName.kubernetes]


def with_every_key() -> str:
    """The example with the lines that are commented out, which are YAML behind their mark."""
    return re.sub(r"^  # (?=[a-z_]+: )", "  ", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_example_of_a_site_gives_a_run_its_values(name):
    launcher = run(f"launcher={name}", "launcher.dryrun=true", site=EXAMPLE).launcher

    for key, expected in yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))[name].items():
        assert getattr(launcher, key) == expected, key


@pytest.mark.parametrize("name", CLUSTERS)
def test_what_the_example_leaves_out_by_a_comment_are_keys_too(name, tmp_path, monkeypatch):
    monkeypatch.setenv("USER", "me")
    (tmp_path / "site.yaml").write_text(with_every_key(), encoding="utf-8")
    stated, commented = (yaml.safe_load(text)[name] for text in (EXAMPLE.read_text(encoding="utf-8"), with_every_key()))

    launcher = run(f"launcher={name}", "launcher.dryrun=true", site=tmp_path / "site.yaml").launcher

    assert commented.keys() > stated.keys()
    for key in commented.keys() - stated.keys():
        assert getattr(launcher, key) == ("me" if key == "user" else commented[key]), key


def test_the_image_is_made_of_files_that_exist_by_a_target_that_exists():
    lines = (FOLDER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]

    assert [name for name in copied if not (FOLDER.parent / name).exists()] == []
    assert {"nemo_cdt", "conf", "pyproject.toml"} <= {*copied}
    assert "RUN make container" in lines
    assert "\ncontainer:\n" in (FOLDER.parent / "Makefile").read_text(encoding="utf-8")


def test_the_image_begins_with_the_container_that_the_page_names():
    (base,) = re.findall(r"^FROM (\S+)$", (FOLDER / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)

    assert base in (FOLDER / "README.md").read_text(encoding="utf-8")
