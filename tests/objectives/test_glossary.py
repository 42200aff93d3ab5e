"""Whatever a run writes into metrics.jsonl is explained, and nothing is explained twice."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_cdt import config as c
from nemo_cdt.objectives import names, objective_class
from nemo_cdt.objectives.glossary import COMMON, figures, glossary
from tests import jobs
from tests.ranks import on_ranks
from tests.runs import TINY, settings_of, small_run, write_documents


def written(config: c.Config) -> set[str]:
    """The names in the metrics of a run."""
    on_ranks(jobs.fit, 1, config)
    rows = Path(config.output, "metrics.jsonl").read_text().splitlines()
    return {name for row in rows for name in json.loads(row)} - {"step"}


def test_what_a_run_that_detects_weighs_and_validates_logs_is_in_the_glossary(tmp_path: Path) -> None:
    config = small_run(
        tmp_path / "run",
        tmp_path,
        steps=1,
        global_batch=2,
        objective=settings_of("cdt_longce", window=64, stride=64),
        model=replace(TINY, vocab_size=512),
        data=c.Data(name=c.DataName.multihop, seq_length=640, validation_samples=2),
    )
    config.trainer.val_interval = 1
    found = written(config)
    expected = {name for name in figures(objective_class("cdt_longce")) if "truncated" not in name}
    assert found == expected - {"val_longppl", "peak_memory_gib"}  # of an evaluator, of a GPU
    assert (found | {"invented"}) - glossary().keys() == {"invented"}


def test_what_a_run_that_truncates_logs_is_in_the_glossary(tmp_path: Path) -> None:
    write_documents(tmp_path / "d.jsonl", kind="lm", count=12, longest=60)
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", steps=1, name="ce")
    config.data = replace(config.data, seq_length=16, truncate=True)
    found = written(config)
    assert {"truncated_documents", "truncated_tokens", "loss"} <= found <= figures(objective_class("ce")).keys()


@pytest.mark.parametrize("name", names())
def test_each_figure_has_one_entry_with_an_explanation_of_one_line(name: str) -> None:
    kind = objective_class(name)
    own = [*(metric.name for metric in kind.METRICS), *(each.metric for each in kind.PASSES)]
    assert {*Counter([*own, *(metric.name for metric in COMMON)]).values()} == {1}
    for metric in figures(kind).values():
        assert metric.title
        assert metric.explanation
        assert "\n" not in metric.explanation + metric.unit
        assert metric.name.endswith("fraction") <= (metric.unit == "fraction")
