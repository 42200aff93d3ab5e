"""Which objectives there are, and one of somebody else's that is installed beside the package."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nemo_cdt.config import Config
from nemo_cdt.objectives import baseline_of, holders, names, objective_class, objectives_of
from nemo_cdt.validation.values import validate_values
from tests import jobs
from tests.ranks import on_ranks
from tests.runs import settings_of, small_run, write_documents

FOREIGN = Path(__file__).parent / "foreign"


def test_every_room_is_found() -> None:
    assert names() == ["cdt", "cdt_longce", "ce", "logo", "longce", "sft"]


@pytest.mark.parametrize("name", names())
def test_each_says_what_it_is_and_what_it_logs(name: str) -> None:
    kind = objective_class(name)
    made = kind(kind.settings_class())
    assert made.settings.name == name
    assert made.label
    assert made.about.endswith(".")
    assert all(isinstance(words, str) for words in made.describe())
    for metric in made.METRICS:
        assert metric.title
        assert "\n" not in metric.explanation


def test_a_setting_is_of_the_objectives_that_have_it() -> None:
    assert holders("beta") == ["cdt", "cdt_longce"]
    assert holders("gamma") == ["longce", "cdt_longce"]
    assert holders("nothing") == []


def test_the_run_beside_takes_what_it_shares_and_what_it_is_given() -> None:
    config = Config(objective=settings_of("cdt_longce", beta=7.0, window=512), compare_to="cdt")
    assert baseline_of(config) == settings_of("cdt", beta=7.0)
    config.compare_to = {"name": "longce", "gamma": 2.0}
    assert baseline_of(config) == settings_of("longce", window=512, gamma=2.0)
    assert [one.label for one in objectives_of(config)] == ["CDT + LongCE", "LongCE"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"name": "longce", "gamma": -1}, r"compare_to\.gamma=-1\.0: set it to a number above 0"),
        ({"name": "longce", "gamma": "abc"}, r"compare_to\.gamma: Value 'abc' of type 'str' could not be converted"),
        ({"name": "longce", "window": 2.5}, r"compare_to\.window: Value '2\.5' of type 'float'"),
        (5, r"compare_to=5: set a name, cdt\|"),
    ],
)
def test_the_run_beside_has_settings_of_the_right_type_and_sign(given: object, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        validate_values(Config(compare_to=given))


def command(*arguments: str, folder: Path, installed: Path = FOREIGN) -> subprocess.CompletedProcess[str]:
    """``nemo-cdt``, where somebody has installed an objective of their own."""
    return subprocess.run(
        [sys.executable, "-m", "nemo_cdt.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{Path.cwd()}:{installed}"},
    )


def install(folder: Path, module: str, **points: str) -> Path:
    """A package in ``folder``, with these entry points."""
    metadata = folder / "beside-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: beside\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[nemo_cdt.objectives]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
    )
    (folder / "beside.py").write_text(module)
    return folder


BESIDE = """
from dataclasses import dataclass
from nemo_cdt.objectives import Objective, Settings

class Undecorated(Settings):
    name: str = "undecorated"
    size: float = 1.0

@dataclass(kw_only=True)
class Sized(Settings):
    MAY_BE_ZERO = frozenset({"size"})
    name: str = "sized"
    size: float = 1.0

class Plain(Objective):
    label = about = "plain."
    settings_class = Undecorated

class Other(Plain):
    settings_class = Sized

class Nameless(Objective):
    settings_class = Sized
"""


def test_one_that_cannot_be_loaded_is_refused_where_it_is_asked_for_and_nowhere_else(tmp_path: Path) -> None:
    points = {"broken": "no_such_module:X", "undecorated": "beside:Plain", "named": "beside:Other"}
    there = install(tmp_path, BESIDE, **points, sized="beside:Other", unlabelled="beside:Nameless")
    expected = {
        "broken": "objective=broken of no_such_module:X cannot be loaded: No module named 'no_such_module'",
        "undecorated": "objective=undecorated of beside:Plain: set @dataclass(kw_only=True) above Undecorated",
        "named": 'objective=named of beside:Other: set `name: str = "named"` in Sized, which has "sized"',
        "unlabelled": "objective=unlabelled of beside:Nameless has no label: set it in Nameless",
    }
    for name, words in expected.items():
        refused = command("train", f"objective={name}", "compare_to=null", folder=tmp_path, installed=there)
        assert (refused.returncode, refused.stderr) == (2, f"error: {words}\n")

    for name, size in (("ce", None), ("sized", "objective.size=0")):
        overrides = [f"objective={name}", "compare_to=null", *([size] if size else [])]
        checked = command("plan", *overrides, folder=tmp_path, installed=there)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_a_foreign_objective_is_composed_and_checked_like_ours(tmp_path: Path) -> None:
    shown = command("train", "objective=signed", "objective.size=0.5", "--cfg", "job", folder=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "size: 0.5" in shown.stdout

    for override, expected in {
        "objective.size=2": "error: objective.size=2.0: set it to 1 or less\n",
        "objective.sise=2": "error: unknown key objective.sise: did you mean objective.size?\n",
        "objective.size=0": "error: objective.size=0.0: set it to a number above 0\n",
        "objective.beta=2": "error: unknown key objective.beta: it is of objective=cdt|cdt_longce",
    }.items():
        refused = command("train", "objective=signed", "compare_to=null", override, folder=tmp_path)
        assert refused.returncode == 2
        assert refused.stderr.startswith(expected)
        assert refused.stderr.count("\n") == 1


def test_a_foreign_objective_trains_through_both_passes(tmp_path: Path) -> None:
    write_documents(tmp_path / "d.jsonl", kind="sft", count=20, longest=60)
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", steps=2)
    [found] = on_ranks(jobs.train_foreign, 1, config, FOREIGN, {"size": 0.25})

    plain = on_ranks(jobs.train, 1, small_run(tmp_path / "ce", tmp_path / "d.jsonl", steps=2, name="ce"))[0]
    assert all(0 < metrics["moved"] < 1 for metrics in found["metrics"])
    assert found["weight_gradients_after_detection"] == [0.0, 0.0]
    assert found["losses"][0] != plain["losses"][0]  # it trained on shifted embeddings
    assert any(not np.array_equal(found["final"][name], plain["final"][name]) for name in found["final"])
