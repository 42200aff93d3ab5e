"""Every command of the README, the guides and the results is composed, parsed or looked up."""

import importlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_cdt.analysis.measures import Measure
from nemo_cdt.analysis.settings import read as read_analysis
from nemo_cdt.cli import _parser
from nemo_cdt.config.compose import compose
from nemo_cdt.cost.request import read as read_plan
from nemo_cdt.data.tokenizer import load_tokenizer
from nemo_cdt.fetch import read as read_fetch
from nemo_cdt.launch.site import with_site
from nemo_cdt.prepare.request import read as read_preparation
from nemo_cdt.validation import validate
from tests.described import write_described
from tests.docs.pages import NAMES, ROOT, commands, read, words
from tests.runs import write_stub_of_prepared

MODELS = {
    "Llama-3.1-8B": "llama31_8b",
    "Llama-3.1-8B-Instruct": "llama31_8b",
    "Llama-3.2-1B-Instruct": "llama32_1b",
    "Qwen2.5-7B": "qwen25_7b",
}
FOREIGN = {"source", "pip", "mkdir", "cp", "kubectl", "docker", "enroot"}
"""Programs that are not ours; the files of ours that they are given must be there."""
COMMANDS = sorted({command for name in NAMES for command in commands(read(name))})


def marked(command: str) -> object:
    """Benchmarks' and inspect's arguments are theirs to parse, and their import takes long."""
    slow = re.match(r"python benchmarks/|nemo-cdt inspect", command)
    return pytest.param(command, marks=[pytest.mark.slow] if slow else [], id=command)


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A folder with the models, rows and prepared data that commands name."""
    folder = tmp_path_factory.mktemp("stock")
    for name, option in MODELS.items():
        write_described(folder / name, compose([f"model={option}"]).model)
        load_tokenizer("byte").save_pretrained(folder / name)
    (folder / "rows.jsonl").write_text("{}")
    shutil.copytree(folder / "Llama-3.2-1B-Instruct", folder / "runs/smollm2")
    for data, tokenizer in {"mine": "byte", "alignment": str(folder / name), "short": str(folder / name)}.items():
        write_stub_of_prepared(folder / "data" / data, tokens=900, tokenizer=tokenizer)
    return folder


@pytest.fixture
def place(stock, tmp_path, monkeypatch):
    """A copy of it, to work in."""
    shutil.copytree(stock, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEMO_CDT_SITE", str(ROOT / "launchers/site.example.yaml"))
    return tmp_path


def check(command: str) -> None:
    """Raises for a command that would be refused."""
    program, *rest = words(command)
    if program in FOREIGN:
        ours = [word for word in rest if re.match(r"(launchers|docs|conf|benchmarks)/", word)]
        assert [word for word in ours if not (ROOT / word).exists()] == []
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        known = [
            f"$({word.partition('=')[0]})" in makefile if "=" in word else f"\n{word}:" in makefile for word in rest
        ]
        assert all(known)
    elif program == "python":
        check_script(*rest)
    else:
        assert program == "nemo-cdt", f"no test knows {program}"
        verb, *arguments = rest
        VERBS.get(verb, lambda arguments: _parser().parse_args([verb, *arguments]))(arguments)


def check_script(script: str, *arguments: str) -> None:
    assert (ROOT / script).exists()
    if script == "recipes/cdt_llama31.py":
        check_run([*arguments])
    elif script.startswith("benchmarks/"):
        importlib.import_module(script.removesuffix(".py").replace("/", ".")).parsed([*arguments])


def check_run(arguments: list[str]) -> None:
    first_of_sweep = [word if "{" in word or "[" in word else re.sub(r",.*", "", word) for word in arguments]
    overrides = [word for word in first_of_sweep if word not in ("-m", "--cfg", "job")]
    stated = {word.partition("=")[0].removeprefix("launcher.") for word in overrides if word.startswith("launcher.")}
    validate(with_site(compose(overrides), stated))


def check_preparation(arguments: list[str]) -> None:
    name, *overrides = arguments
    for override in overrides:
        key, _, value = override.partition("=")
        if key.endswith("input"):
            Path(value).touch()
        elif key == "tokenizer" and value != "byte":
            Path(value).mkdir(exist_ok=True)
    read_preparation(name, overrides)


def check_analysis(arguments: list[str]) -> None:
    measure, *overrides = arguments
    for path in re.findall(r"\b(?:model|compare|predictions|baseline)=(\S+)", " ".join(overrides)):
        Path(path).mkdir(parents=True, exist_ok=True)
    read_analysis(Measure(measure), overrides)


def check_inspection(arguments: list[str]) -> None:
    from nemo_cdt.inspection import _read

    _, *overrides = arguments
    _read(overrides)


VERBS: dict[str, Callable[[list[str]], object]] = {
    "train": check_run,
    "prepare": check_preparation,
    "analyze": check_analysis,
    "inspect": check_inspection,
    "plan": read_plan,
    "fetch": lambda arguments: read_fetch(arguments[0], arguments[1:]),
}


@pytest.mark.parametrize("command", [marked(command) for command in COMMANDS])
def test_a_command_is_one_that_we_take(command, place, capsys):
    check(command)

    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "command",
    [
        "nemo-cdt train objective.betta=1",
        "nemo-cdt train init.hf=Llama-3.1-8B data=jsonl data.path=rows.jsonl parallel.tensor=3 trainer.devices=3",
        "nemo-cdt fly",
        "nemo-cdt prepare books input=a output=b tokenizer=byte",
        "nemo-cdt analyze ig modle=x output=y",
        "nemo-cdt plan cluster.gpu=z9",
        "nemo-cdt fetch smollm9 output=x",
        "make nothing",
        "cp launchers/nothing.yaml here",
        "python recipes/nothing.py",
        "sed -i s/a/b/ file",
    ],
)
def test_a_command_that_is_wrong_is_noticed(command, place):
    with pytest.raises((AssertionError, ValueError, SystemExit)):
        check(command)


def test_there_are_commands_of_every_kind():
    verbs = {words(command)[1] for command in COMMANDS if command.startswith("nemo-cdt ")}
    known = set(re.findall(r"^    (\w+) +\S", _parser().format_help(), re.MULTILINE))

    assert known <= verbs
    assert {words(command)[0] for command in COMMANDS} >= {"make", "nemo-cdt", "python"}


def test_the_readme_trains_on_rows_of_ones_own_as_it_says(place):
    command = next(line for line in commands(read("README.md")) if line.startswith("nemo-cdt train init.hf"))

    config = compose(words(command)[2:])

    assert (config.trainer.devices, config.data.seq_length, config.output) == (8, 32768, "runs/mine")
    assert (config.init.hf, config.model.num_layers) == ("Llama-3.1-8B", 32)
