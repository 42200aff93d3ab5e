"""docs/reference is what the code says now, and everything in the code says what it is."""

import importlib.util
import re
from dataclasses import dataclass
from types import ModuleType

import pytest

from nemo_cdt.config import walk
from nemo_cdt.config.compose import compose, options
from nemo_cdt.config.help import descriptions
from nemo_cdt.launch.local.run import CONTENTS
from nemo_cdt.objectives import objective_class
from nemo_cdt.validation.places import OURS
from tests.docs.pages import GENERATED, ROOT

# inspect's keys are in a module that imports transformers
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(generate) -> dict[str, str]:
    return generate.pages()


def test_the_reference_is_what_the_code_says_now(pages):
    there = {path.name: path.read_text(encoding="utf-8") for path in GENERATED.iterdir()}

    assert there.keys() == pages.keys()
    assert [name for name, text in pages.items() if there[name] != text] == [], "run python docs/generate.py"


def test_every_row_of_the_reference_says_what_it_is(pages):
    assert [row for text in pages.values() for row in wordless(text)] == []


def wordless(text: str) -> list[str]:
    """Rows of tables that say what they are in fewer than two words."""
    found = []
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        head, _, *rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()]
        column = next(place for place, name in enumerate(head) if name.strip() in ("what it is", "what it does"))
        found += ["|".join(row) for row in rows if len(row[column].split()) < 2]
    return found


def test_a_key_without_a_meaning_is_noticed(generate):
    @dataclass(kw_only=True)
    class Keys:
        said: int = 1
        """The number that is said."""
        behind: int = 2  # what a comment says
        # what stands above a field says nothing of it
        wrapped: int = 4  # what stands within it
        silent: int = 3

    table = generate._keys([*generate.keys(Keys())]) + "\n"

    assert wordless(table) == [" `silent` | `3` |  "]
    assert "| `said` | `1` | The number that is said. |" in table
    assert "| `behind` | `2` | What a comment says. |" in table
    assert "| `wrapped` | `4` | What stands within it. |" in table


def test_every_key_of_a_run_is_in_the_reference(pages):
    named = set(re.findall(r"^\| `([\w.]+)` \|", pages["configuration.md"], re.MULTILINE))
    runs = [compose(["model=tiny", f"objective={name}"]) for name in options("objective")]
    wanted = {key for run in runs for key, value in walk(run) if not hasattr(value, "__dataclass_fields__")}

    assert wanted <= named


@pytest.mark.parametrize("key", ["beta", "rho", "epsilon"])
def test_somebody_who_searches_strength_finds_the_key(key):
    assert "strength of the shift" in descriptions(objective_class("cdt").settings_class)[key]


def test_every_metric_of_an_objective_is_in_the_reference(pages):
    kinds = [objective_class(name) for name in options("objective")]
    wanted = {metric.name for kind in kinds for metric in kind.METRICS} | {p.metric for k in kinds for p in k.PASSES}

    assert wanted <= set(re.findall(r"^\| `(\w+)` \|", pages["metrics.md"], re.MULTILINE))


def test_metrics_that_another_module_holds_are_found(generate, tmp_path, monkeypatch):
    (tmp_path / "nemo_cdt").mkdir()
    (tmp_path / "nemo_cdt/glossary.py").write_text(
        "from nemo_cdt.objectives.base import Metric\n"
        "EVERY = {'speed': Metric(name='speed', title='speed', explanation='tokens a second')}\n"
    )
    import nemo_cdt

    monkeypatch.setattr(nemo_cdt, "__path__", [*nemo_cdt.__path__, str(tmp_path / "nemo_cdt")])
    monkeypatch.setattr(generate, "ROOT", tmp_path)

    assert "| `speed` | speed | Tokens a second. |  |  |" in generate.metrics()


def test_everything_a_run_writes_says_what_it_is():
    assert CONTENTS.keys() - {"hf"} == OURS


def test_every_command_is_in_the_reference(pages):
    verbs = re.findall(r"^## nemo-cdt (\w+)$", pages["commands.md"], re.MULTILINE)

    assert {"train", "plan", "prepare", "inspect", "analyze", "convert", "report", "doctor"} <= set(verbs)
    assert pages["commands.md"].count("usage: nemo-cdt") == len(verbs)
