"""The README is run: its commands compose, its paths exist, its tree is the tree."""

import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_cdt.cli import main
from nemo_cdt.config import Config, typed, walk
from nemo_cdt.config.compose import compose
from nemo_cdt.config.launcher import Launcher
from nemo_cdt.data.tokenizer import load_tokenizer
from nemo_cdt.objectives import names, objective_class
from nemo_cdt.prepare.request import read
from nemo_cdt.validation import validate
from tests.described import write_described
from tests.runs import write_stub_of_prepared

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (\S.*)$", README, re.MULTILINE)
RUNS = [command for command in COMMANDS if command.startswith("nemo-cdt train")]
VERBS = sorted({command.split()[1] for command in COMMANDS if command.startswith("nemo-cdt ")})
ROOMS = re.search(r"## The rooms\n(.*?)\n## ", README, re.DOTALL)


def first_words(section: str) -> list[str]:
    return re.findall(r"^    (\S+)", section, re.MULTILINE)


@pytest.mark.parametrize("command", RUNS)
def test_a_run_composes_and_is_valid(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}")
    models = {
        "Llama-3.1-8B": "llama31_8b",
        "Llama-3.1-8B-Instruct": "llama31_8b",
        "Llama-3.2-1B-Instruct": "llama32_1b",
    }
    for name, option in models.items():
        write_described(tmp_path / name, compose([f"model={option}"]).model)
        load_tokenizer("byte").save_pretrained(tmp_path / name)
    for data, tokenizer in {"mine": "byte", "alignment": str(tmp_path / name), "short": str(tmp_path / name)}.items():
        write_stub_of_prepared(tmp_path / "data" / data, tokens=900, tokenizer=tokenizer)
    _, _, *overrides = shlex.split(command)
    first_of_sweep = [re.sub(r",.*", "", override) for override in overrides if override != "-m"]

    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes/cdt_llama31.py"), "--cfg", "job", *first_of_sweep],
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stderr) == (0, "")
    validate(typed(OmegaConf.create(done.stdout)))


def test_the_runs_are_some_of_each_kind():
    assert len(RUNS) >= 5
    assert VERBS == [
        "analyze",
        "cancel",
        "convert",
        "doctor",
        "inspect",
        "logs",
        "plan",
        "prepare",
        "report",
        "status",
        "train",
    ]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("nemo-cdt prepare ")])
def test_a_preparation_composes_and_is_valid(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, name, *overrides = shlex.split(command)
    for override in overrides:
        key, _, value = override.partition("=")
        if key.endswith("input"):
            (tmp_path / value).touch()
        elif key == "tokenizer":
            (tmp_path / value).mkdir()

    read(name, overrides)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as exit:
        main([verb, "--help"])

    assert exit.value.code == 0
    assert f"usage: nemo-cdt {verb} [" in capsys.readouterr().out


def test_the_map_names_every_room_and_nothing_else():
    assert ROOMS is not None
    packages = {f"nemo_cdt/{path.parent.name}/" for path in ROOT.glob("nemo_cdt/*/__init__.py")}

    assert {*first_words(ROOMS[1])} == packages | {
        f"{name}/" for name in ("conf", "recipes", "launchers", "nemo_cdt", "benchmarks", "tests")
    }


def test_every_file_and_test_that_is_named_exists():
    files = re.findall(r"`((?:nemo_cdt|tests|benchmarks|conf|recipes)/[\w./-]*)", README)
    source = "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))

    assert [file for file in files if not (ROOT / file.removesuffix("::")).exists()] == []
    assert [test for test in re.findall(r"::(test_\w+)", README) if f"def {test}(" not in source] == []


def test_every_key_of_the_contract_is_in_the_schema():
    known = {key for key, _ in walk(Config())}
    known |= {f"objective.{key.name}" for name in names() for key in fields(objective_class(name).settings_class)}
    rows = re.findall(r"^\| `(\w+\.)` \| (.*) \|$", README, re.MULTILINE)
    named = {f"{group}{key}" for group, keys in rows for key in re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", keys))}

    assert len(named) > 30
    assert named <= known


def test_every_key_of_a_launcher_is_in_its_page_and_no_other():
    page = (ROOT / "launchers/README.md").read_text()
    table = page[page.index("## Keys of `launcher`") : page.index("## What happens on a node")]
    rows = re.findall(r"^\| [\w: ]+ \| (`.*) \|$", table, re.MULTILINE)

    named = {key for keys in rows for key in re.findall(r"`(\w+)`", keys)}
    assert named == {key.name for key in fields(Launcher)}
