"""benchmarks/effect.py: statistics as scipy's; in miniature it runs and goes on, and finds nothing of meaning."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks import effect, effect_jobs, effect_report
from nemo_cdt.analysis.analyzed_model import load
from nemo_cdt.config import Precision
from nemo_cdt.data.documents import TokenType
from nemo_cdt.evaluation.model import read_config
from tests.llama import random_hugging_face
from tests.runs import TINY

CELLS = [(1024, 3), (1024, 4)]


def row(seed: int, arm: str, rng: np.random.Generator) -> dict:
    """As a run leaves it."""

    def judged(steps: int) -> dict:
        figures = [{name: float(rng.random()) for name in effect_report.FIGURES} for _ in CELLS]
        cells = [{"seq_length": n, "hops": h, "questions": 8} | f for (n, h), f in zip(CELLS, figures, strict=True)]
        return {"steps": steps, "cells": cells, "training": {"loss": 1.0, "step_time": 0.5}}

    budgets = {"steps": judged(0)} if arm == "first" else {"time": judged(2), "steps": judged(4)}
    about = {"command": "python", "date": "today", "versions": {"device": "cpu"}, "seconds": 1.0, "start": str(seed)}
    settings = effect.settings(effect.parsed([]))
    return about | {"seed": seed, "arm": arm, "steps": 4, "reached": True, "relative_time": 1.8, "budgets": budgets,
                    "settings": settings}  # fmt: skip


@pytest.fixture
def rows() -> list[dict]:
    rng = np.random.default_rng(0)
    return [row(seed, arm, rng) for seed in range(5) for arm in ("first", "ce", "cdt_gradient_10", "longce")]


def finding(rows: list[dict], arm: str, figure: str, budget: str, cell: tuple | None) -> effect_report.Finding:
    wanted = (arm, figure, budget, cell)
    return next(f for f in effect_report.summary(rows) if (f.arm, f.figure, f.budget, f.cell) == wanted)


def values(rows: list[dict], arm: str, figure: str, budget: str, cell: tuple | None) -> list[float]:
    of = [r["budgets"][budget]["cells"] for r in rows if r["arm"] == arm]
    return [np.mean([c[figure] for c in each if cell in (None, (c["seq_length"], c["hops"]))]) for each in of]


@pytest.mark.parametrize("budget", ["steps", "time"])
@pytest.mark.parametrize("cell", [None, (1024, 4)])
def test_means_and_paired_differences_are_those_of_scipy(rows, budget, cell):
    found = finding(rows, "longce", "accuracy", budget, cell)
    ours, plain = (values(rows, arm, "accuracy", budget, cell) for arm in ("longce", "ce"))

    expected = stats.ttest_rel(ours, plain)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(ours), scale=stats.sem(ours))
    assert (found.mean.mean, found.mean.low, found.mean.high) == pytest.approx((np.mean(ours), low, high))
    assert (found.t, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    interval = expected.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high))
    unpaired = stats.ttest_ind(ours, plain)
    assert found.p != pytest.approx(unpaired.pvalue, rel=0.01)


def test_seeds_are_paired_by_number_and_one_that_failed_is_counted(rows):
    failed = next(r for r in rows if r["arm"] == "longce" and r["seed"] == 1)
    failed |= {"error": "found NaN", "budgets": {b: {"steps": 4, "error": "found NaN"} for b in ("time", "steps")}}
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]

    found = finding(shuffled, "longce", "accuracy", "steps", None)

    ours, plain = (
        values([r for r in rows if r["seed"] != 1], arm, "accuracy", "steps", None) for arm in ("longce", "ce")
    )
    assert (found.failed, found.mean.count) == (1, 4)
    assert found.differences == pytest.approx(np.subtract(ours, plain))
    assert found.p == pytest.approx(stats.ttest_rel(ours, plain).pvalue)


def test_the_page_shows_every_arm_and_seed_and_what_failed(rows, tmp_path):
    rows[-1] |= {"error": "found NaN", "budgets": {b: {"steps": 4, "error": "found NaN"} for b in ("time", "steps")}}

    effect_report.write(tmp_path, rows, effect_report.summary(rows), ["ce of seed 9"], "python")

    page = (tmp_path / "report.html").read_text()
    assert "Not done yet: ce of seed 9" in page
    assert "longce of seed 4 failed: found NaN" in page
    every = page[page.index("<h2>Every seed</h2>") :]
    assert every.count("<tr>") == 1 + 5 + 2 * 15
    assert 'src="data:image/png;base64,' in page
    json.dumps(effect_report.as_json(effect_report.summary(rows)), allow_nan=False)


def test_right_answers_and_detection_are_those_of_plain_autograd(tmp_path):
    model = random_hugging_face(replace(TINY, vocab_size=384), 384)
    model.save_pretrained(tmp_path)
    given = effect.questions(1024, 3, 3, 384)
    said = model(torch.tensor(given[0].input_ids)[None]).logits[0, -1].argmax().item()
    given = [replace(given[0], rows=given[0].rows[-1:], answer=np.array([said])), *given[1:]]

    found = effect.asked(load(tmp_path, read_config(tmp_path), Precision.fp32, torch.device("cpu")), given)

    losses, critical, every = [], [], []
    for sample in given:
        embedding = model.get_input_embeddings()(torch.tensor(sample.input_ids)).detach()[None].requires_grad_(True)
        log_probabilities = model(inputs_embeds=embedding).logits[0].log_softmax(-1)
        loss = -log_probabilities[sample.rows, sample.answer].mean()
        (gradient,) = torch.autograd.grad(loss, embedding)
        norm = gradient[0].norm(dim=-1)
        critical += sample.types[(norm >= norm.mean()).numpy()].tolist()
        every += sample.types.tolist()
        losses.append(loss.item())
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-4)  # fp32
    for kind in (TokenType.supporting, TokenType.interference):
        assert found[f"critical_{kind.name}"] == pytest.approx(critical.count(kind) / len(critical), abs=0.01)
        assert found[f"base_{kind.name}"] == every.count(kind) / len(every)
    assert found["critical_supporting"] != pytest.approx(found["base_supporting"], abs=0.01)


def test_an_arm_that_is_none_and_other_settings_are_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        effect.parsed(["--only", "cdt"])
    assert "cdt: no arm; there are ce, sft" in capsys.readouterr().err
    folder = tmp_path / "seed_42/ce"
    folder.mkdir(parents=True)
    there = effect.settings(effect.parsed([])) | {"samples": 3}
    (folder / "result.json").write_text(json.dumps({"arm": "ce", "settings": there}))

    with pytest.raises(SystemExit, match="2"):
        effect.is_done(folder, effect.parsed([]))
    assert "result.json was made with samples=3, not 2: set another --out" in capsys.readouterr().err


def test_no_seed_begins_while_steps_are_timed_and_gpus_share_them_evenly(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    arguments = effect.parsed(["--jobs", "3"])

    def free(*names: str) -> int | None:
        return effect_jobs._free_gpu(arguments, {name: (None, number % 2) for number, name in enumerate(names)})

    assert free("times") is None
    assert [free(), free("a"), free("a", "b"), free("a", "b", "c", "d")] == [0, 1, 0, None]


def test_results_of_other_seeds_count_too_and_no_others(rows, tmp_path):
    there, here = [r for r in rows if r["seed"] > 1], [r for r in rows if r["seed"] <= 1]
    for each in here:
        folder = tmp_path / f"seed_{each['seed']}" / each["arm"]
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(each))

    def other(**changed) -> list:
        file = tmp_path / "other.json"
        file.write_text(json.dumps({"benchmark": "effect", "rows": [each | changed for each in there]}))
        return [file]

    found = effect_report.read(tmp_path, other())

    assert effect_report.summary(found) == effect_report.summary(rows)
    assert effect_report.summary(effect_report.read(tmp_path)) != effect_report.summary(rows)
    settings = there[0]["settings"]
    for changed, expected in (
        ({"settings": settings | {"samples": 9}}, "differ in samples: they are no one result"),
        ({"seed": 1, "start": "1"}, "first of seed 1 is in .*seed_1/first/result.json and in .*other.json: take one"),
        ({"start": "elsewhere", "seed": 1, "arm": "sft"}, "other.json began from other weights than .*seed_1/first"),
    ):
        with pytest.raises(ValueError, match=expected):
            effect_report.read(tmp_path, other(**changed))
    for text, expected in (("{}", "is no result of benchmarks/effect.py"), ("{", "is no result: ")):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(ValueError, match=expected):
            effect_report.read(tmp_path, [tmp_path / "other.json"])


def test_the_time_of_another_session_is_not_pooled_with_ours(rows, tmp_path):
    for each in (r for r in rows if r["seed"] <= 1):
        (folder := tmp_path / f"seed_{each['seed']}" / each["arm"]).mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(each))
    theirs = [r | {"relative_time": 2.5} if r["arm"].startswith("cdt") else r for r in rows if r["seed"] > 1]
    (other := tmp_path / "other.json").write_text(json.dumps({"benchmark": "effect", "rows": theirs}))

    found = effect_report.read(tmp_path, [other])

    def seeds(arm: str, budget: str) -> int:
        return finding(found, arm, "accuracy", budget, None).mean.count

    assert [seeds("cdt_gradient_10", b) for b in ("steps", "time")] == [5, 2]
    assert [seeds("longce", b) for b in ("steps", "time")] == [5, 5]
    page = effect_report._result(found, effect_report.summary(found), [])
    assert [n for n in page.notices if n.startswith("3 runs of another session") and "(cdt 2)" in n]
    every = next(table for table in page.tables if table.title == "Every seed")
    assert sum(line[2] == effect_report.OTHER_TIME for line in every.rows) == 3
    effect_report.write(tmp_path, found, effect_report.summary(found), [], "python")


def test_a_seed_that_fails_is_one_line_that_names_its_log(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        effect.main(
            ["--seeds", "1", "--jobs", "2", "--only", "first", "--out", str(tmp_path), "--set", "optim.lr=fast"]
        )

    assert f"seed_1 ended with exit code 2: see {tmp_path}/seed_1.log" in capsys.readouterr().err
    assert "'fast'" in (tmp_path / "seed_1.log").read_text()


def test_it_runs_in_miniature_and_does_nothing_twice(tmp_path):
    words = ["--seeds", "1", "--only", "cdt_gradient_10", "--first-steps", "2", "--samples", "2", "--timed", "1"]
    words += ["--out", str(tmp_path)]
    effect.main([*words, "--minutes", "0"])
    assert not [*tmp_path.iterdir()]

    effect.main([*words, "--jobs", "2"])

    assert {file.name for file in tmp_path.glob("*.log")} == {"times.log", "seed_1.log"}
    rows = effect_report.read(tmp_path)
    assert [(r["seed"], r["arm"]) for r in rows] == [(1, arm) for arm in ("first", "ce", "cdt_gradient_10")]
    first, plain, denoised = rows
    assert first["start"] == plain["start"] == denoised["start"]
    assert plain["budgets"]["time"] == plain["budgets"]["steps"]
    assert denoised["budgets"]["steps"]["steps"] == 2
    assert denoised["budgets"]["time"]["steps"] == max(1, math.floor(2 / denoised["relative_time"]))
    assert denoised["budgets"]["steps"]["training"]["changed_fraction"] > 0
    assert denoised["budgets"]["steps"]["cells"] != plain["budgets"]["steps"]["cells"]
    times = {file: file.stat().st_mtime_ns for file in tmp_path.glob("seed_*/*/result.json")}
    effect.main(words)
    assert times == {file: file.stat().st_mtime_ns for file in tmp_path.glob("seed_*/*/result.json")}
    result = json.loads(max(tmp_path.glob("effect_*.json"), key=lambda file: file.stat().st_mtime_ns).read_text())
    assert {"command", "date", "versions", "settings", "missing", "summary", "rows"} < result.keys()
    assert not result["missing"]

    other = json.loads((tmp_path / "seed_1/ce/result.json").read_text()) | {"start": "others"}
    (tmp_path / "seed_1/ce/result.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"seed_1/ce/result\.json began from other weights than .*seed_1/first"):
        effect_report.read(tmp_path)
