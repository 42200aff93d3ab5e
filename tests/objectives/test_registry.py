"""Which objectives there are, and one of somebody else's that is installed beside the package."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nemo_cdt.config import Config
from nemo_cdt.objectives import baseline_of, holders, names, objective_class, objectives_of
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


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """``nemo-cdt``, where somebody has installed an objective of their own."""
    code = (
        f"import sys; sys.path.insert(0, {str(FOREIGN)!r}); from nemo_cdt.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )


def test_a_foreign_objective_is_composed_and_checked_like_ours(tmp_path: Path) -> None:
    shown = command("train", "objective=signed", "objective.size=0.5", "--cfg", "job", folder=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "size: 0.5" in shown.stdout

    for override, expected in {
        "objective.size=2": "error: objective.size=2.0: set it to 1 or less\n",
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
