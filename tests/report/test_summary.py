"""The report of a synthetic run folder, written as the trainer writes it, read back as HTML."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from nemo_cdt.config import Config, Export, load, typed
from nemo_cdt.data.documents import TokenType
from nemo_cdt.report import heatmap, summary, write_report
from nemo_cdt.report.run import read_run

ROOT = Path(__file__).parents[2]
HAYSTACK = "Permission is hereby granted, free of charge, to any person <obtaining> a copy & its documents.\n" * 3
PARTS = [
    (HAYSTACK, TokenType.irrelevant),
    ("Mary picked up the apple. ", TokenType.supporting),
    (HAYSTACK, TokenType.irrelevant),
    ("John dropped the milk. ", TokenType.interference),
    ("🦄", TokenType.low_frequency),
    (HAYSTACK, TokenType.irrelevant),
    ("Mary went to the <garden>. ", TokenType.supporting),
    (HAYSTACK, TokenType.irrelevant),
    ("Where was the apple?", TokenType.question),
    (" garden", TokenType.answer),
]


class Page(HTMLParser):
    """The page's text, its heat map's tokens as (text, token type, shade, title), and its figures' titles."""

    def __init__(self, path: Path):
        super().__init__()
        self.text, self.tokens, self.pictures, self.links = "", [], [], []
        self._kind = self._token = self._hidden = None
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        self._hidden = tag == "style"
        if tag == "u":
            self._kind = attributes["class"]
        if tag == "span" and "title" in attributes:
            self._token = (self._kind, attributes["class"], attributes["title"])
        if tag == "img":
            self.pictures.append(attributes["alt"].split(".")[0])

    def handle_data(self, data):
        self.text += f" {data}" if self._token is None and not self._hidden else ""
        if self._token is not None:
            self.tokens.append((data, *self._token))
            self._token = None


def write_config(folder: Path, **overrides) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = OmegaConf.structured(Config(name="synthetic"))
    OmegaConf.save(OmegaConf.merge(config, OmegaConf.create(overrides)), folder / "config.yaml")


def write_metrics(folder: Path, steps: int = 100, cdt: bool = True, **columns) -> None:
    random = np.random.default_rng(0)
    rows: list[dict] = []
    for step in range(1, steps + 1):
        loss = 2.0 + 3.5 * np.exp(-step / 25) + 0.08 * random.standard_normal() + (0 if cdt else 0.12)
        seconds = {"detection_time": 0.9, "training_time": 1.4} if cdt else {}
        row = {"step": step, "loss": loss, "lr": 1e-5, "grad_norm": 1.2, "peak_memory_gib": None}
        row |= {"step_time": 2.5 if cdt else 1.5, "tokens_per_second": 8192 / (2.5 if cdt else 1.5)}
        if cdt:
            row |= {"detection_loss": loss + 0.05, "noise_fraction": 0.78 + 0.02 * random.standard_normal()}
            row |= {"threshold": 3e-4 * np.exp(-step / 80), "delta_to_embedding": 2e-3 * np.exp(-step / 60)}
            row |= {"changed_fraction": 0.6} | seconds
        rows.append(row | columns)
        if step % 20 == 0:
            told = {"val_critical_supporting": 0.3, "val_critical_interference": 0.2}
            told |= {"val_base_supporting": 0.1, "val_base_interference": 0.1, "val_accuracy": 0.5}
            rows.append({"step": step, "val_loss": loss + 0.2} | told)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_sample(folder: Path, parts=PARTS, types: bool = True) -> dict:
    """Byte tokens: facts and question score above the threshold, the rest mostly below it."""
    random = np.random.default_rng(1)
    spread = {0: -1.6, 1: 1.9, 2: 1.0, 3: 0.5, 4: 1.2, 5: 2.6}
    tokens = [bytes([byte]).decode("utf-8", "surrogateescape") for text, _ in parts for byte in text.encode()]
    kinds = [int(kind) for text, kind in parts for _ in text.encode()]
    scores = [3e-4 * 2 ** (spread[kind] + random.standard_normal()) for kind in kinds]
    sample = {"step": 100, "tokens": tokens, "types": kinds if types else None, "scores": scores, "threshold": 3e-4}
    sample |= {"noise": [score < 3e-4 for score in scores], "labels": [kind == TokenType.answer for kind in kinds]}
    (folder / "sample.json").write_text(json.dumps(sample))
    return sample


def write_run(folder: Path) -> Path:
    """A whole run: CDT beside plain CE, with a sample and versions."""
    for part, cdt in ((folder, True), (folder / "baseline", False)):
        write_config(part, objective={"name": "cdt" if cdt else "ce"})
        write_metrics(part, cdt=cdt)
    write_sample(folder)
    (folder / "versions.json").write_text('{"torch": "2.13.0", "megatron-core": "0.15.3"}')
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path)


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> Path:
    """A whole run with its report: to read, not to change."""
    return write_report(write_run(tmp_path_factory.mktemp("run"))).parent


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_whole_run_becomes_one_page_without_links_to_anything_outside(reported):
    page = Page(reported / "report.html")
    assert page.links
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    assert page.pictures == [
        *("Training loss", "Validation loss", "Right answers", "Does detection find the facts"),
        *("Noise fraction", "Detection threshold", "Denoising strength", "Step time", "Throughput"),
    ]
    assert "torch 2.13.0, megatron-core 0.15.3" in page.text
    assert "100 of 100" in page.text
    assert not list(reported.glob("*.tmp"))


def test_the_summary_holds_first_last_and_best_of_run_and_baseline(reported):
    losses = [row["loss"] for row in rows_of(reported) if "loss" in row]
    baseline = [row["loss"] for row in rows_of(reported / "baseline") if "loss" in row]
    best, best_baseline = int(np.argmin(losses)), int(np.argmin(baseline))
    expected = (
        f"training loss {losses[0]:.3f} {losses[-1]:.3f} {losses[best]:.3f} (step {best + 1}) "
        f"{baseline[-1]:.3f} {baseline[best_baseline]:.3f} (step {best_baseline + 1})"
    )
    page = Page(reported / "report.html")
    assert expected in page.text
    assert "1.67x step time of plain CE (medians)" in page.text  # 2.5 s / 1.5 s


def test_the_page_explains_token_types_in_words(reported):
    page = Page(reported / "report.html")
    for type in ("supporting fact", "interference fact", "irrelevant text", "low-frequency word"):
        assert re.search(rf"{type} [A-Z][^.]+\.", page.text)


def test_the_pages_command_composes_the_same_run(tmp_path):
    run = write_run(tmp_path / "beta=1,b 2")
    write_config(run, objective={"beta": 7.0}, export={"hf": "somewhere/hf"}, resume=True)
    (command,) = re.findall(r"To run it again (nemo-cdt train .*?), in the folder", Page(write_report(run)).text)
    _, _, *words = shlex.split(command)
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes/cdt_llama31.py"), "--cfg", "job", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )

    assert (done.returncode, done.stderr) == (0, "")
    found, expected = typed(OmegaConf.create(done.stdout)), load(run / "config.yaml")
    assert found == replace(expected, output="again", resume=False, export=Export(hf="again/hf"))
    assert {path.name for path in tmp_path.iterdir()} == {run.name}


def test_every_token_is_on_the_page_escaped_and_with_its_own_colour(reported):
    sample, page = json.loads((reported / "sample.json").read_text()), Page(reported / "report.html")
    assert "".join(text for text, *_ in page.tokens) == "".join(text for text, _ in PARTS)
    assert "<obtaining>" not in (reported / "report.html").read_text()
    position = 0
    for text, kind, shade, title in page.tokens:
        span = slice(position, position := position + len(text.encode()))
        score = max(sample["scores"][span])
        assert kind == TokenType(sample["types"][span][0]).name
        assert shade.startswith("noise") == all(sample["noise"][span])
        assert f"score {score:.3g} = " in title
    assert position == len(sample["tokens"])


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(0, "noise3"), (0.3, "noise2"), (0.6, "noise1"), (1, "critical0"), (5, "critical2"), (float("inf"), "critical4")],
)
def test_a_shade_is_one_doubling_of_the_score(ratio, expected):
    assert heatmap._shade(ratio, noise=ratio < 1) == expected


def test_the_bytes_of_one_character_are_one_cell(reported):
    page = Page(reported / "report.html")
    (unicorn,) = [token for token in page.tokens if token[0] == "🦄"]
    assert unicorn[1] == "low_frequency"
    first = "".join(text for text, _ in PARTS).encode().index("🦄".encode())
    assert f"tokens {first} to {first + 3}" in unicorn[3]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["a", "\udcc3", "\udca9", "b"], [("a", 0, 1), ("é", 1, 3), ("b", 3, 4)]),
        ([" \ufffd", "\ufffd", "\ufffd", "b"], [(" \ufffd", 0, 3), ("b", 3, 4)]),
        (["\udcf0", "\udc9f"], [("\ufffd", 0, 2)]),
        ([" <b>", "\n\n"], [(" <b>", 0, 1), ("\n\n", 1, 2)]),
    ],
)
def test_split_characters_are_joined_and_others_are_not(tokens, expected):
    assert list(heatmap.whole_characters(tokens)) == expected


def test_the_type_table_gives_noise_shares_beside_the_base_rate(reported):
    sample = json.loads((reported / "sample.json").read_text())
    noise, types = np.array(sample["noise"]), np.array(sample["types"])
    page = Page(reported / "report.html")
    facts = types == TokenType.supporting
    assert f"supporting fact {facts.sum()} {100 * facts.mean():.2f} % {100 * noise[facts].mean():.1f} %" in page.text
    assert f"all tokens (base rate) {len(types):,} 100.00 % {100 * noise.mean():.1f} %" in page.text


def test_a_long_sample_shows_windows_and_counts_the_rest(run):
    write_sample(run, [(HAYSTACK * 300, TokenType.irrelevant), *PARTS, (HAYSTACK * 100, TokenType.irrelevant)])
    page = Page(write_report(run))
    shown = "".join(text for text, *_ in page.tokens)
    total = len(json.loads((run / "sample.json").read_text())["tokens"])
    skipped = [int(count.replace(",", "")) for count in re.findall(r"([\d,]+) tokens skipped", page.text)]
    assert sum(skipped) + len(shown.encode()) == total > 100_000
    assert all(text in shown for text, kind in PARTS if kind != TokenType.irrelevant)
    assert (run / "report.html").stat().st_size < 2_000_000


def test_a_long_sample_without_types_shows_its_highest_scores(run):
    sample = write_sample(run, [(HAYSTACK * 300, TokenType.irrelevant)], types=False)
    page = Page(write_report(run))
    highest = int(np.argmax(sample["scores"]))
    assert any(f"token {highest:,}" in title for *_, title in page.tokens)
    assert len(page.tokens) < len(sample["tokens"]) / 2
    assert "supporting fact" not in page.text


def test_a_denoising_step_that_changes_nothing_is_said_loudly(run):
    write_metrics(run, changed_fraction=0.0)
    page = Page(write_report(run))
    assert "changes (almost) nothing at this precision (bf16)" in page.text
    assert (
        "a larger objective.beta (now 5), or objective.normalization=relative, or model.fp32_residual=true" in page.text
    )


@pytest.mark.parametrize(("changed", "expected"), [(0.0, True), (9e-5, True), (2e-4, False), (1.0, False)])
def test_the_warning_comes_below_one_element_in_ten_thousand(run, changed, expected):
    write_metrics(run, changed_fraction=changed)
    assert (summary.notice(read_run(run)) is not None) == expected


def test_a_warning_does_not_advise_what_is_set_already(run):
    write_config(run, objective={"normalization": "relative", "rho": 1e-6}, model={"fp32_residual": True})
    write_metrics(run, changed_fraction=0.0)
    assert str(summary.notice(read_run(run))).endswith("Set a larger objective.rho (now 1e-06).")


def test_a_line_cut_off_by_a_kill_is_skipped_and_said(run):
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 101, "lo')
    page = Page(write_report(run))
    assert "Skipped unreadable metrics (line 106)" in page.text  # 100 steps and 5 validations before it
    assert "100 of 100" in page.text


def test_a_resumed_run_reports_the_later_row_of_a_step(run):
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"step": 100, "loss": 0.1234, "step_time": 2.5, "tokens_per_second": 3277}) + "\n")
    assert "0.123 (step 100)" in Page(write_report(run)).text


def test_plain_cross_entropy_alone_is_reported_without_noise(tmp_path):
    write_config(tmp_path, objective={"name": "ce"})
    write_metrics(tmp_path, cdt=False)
    page = Page(write_report(tmp_path))
    found = ["Right answers", "Does detection find the facts"]  # of validation, whatever the objective
    assert page.pictures == ["Training loss", "Validation loss", *found, "Step time", "Throughput"]
    assert "No baseline in this run" in page.text
    assert "plain CE detects no noise" in page.text
    assert not page.tokens


def test_a_diverged_run_is_reported_and_said(run):
    write_metrics(run, steps=3, loss="nan", delta_to_embedding=0.0, changed_fraction=0.0, threshold=0.0)
    assert "The loss is no number in 3 steps, first at step 1." in Page(write_report(run)).text


def test_a_single_step_is_enough(tmp_path):
    write_config(tmp_path)
    write_metrics(tmp_path, steps=1)
    page = Page(write_report(tmp_path))
    assert "1 of 100" in page.text
    assert "No sample.json" in page.text


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ({"noise": [True]}, "tokens but 1 noise"),
        ({"types": [9]}, "9 is not a valid TokenType"),
        ({"scores": None}, "tokens but 1 scores"),
        ({"threshold": None}, "is not a sample of a run"),
        ({"tokens": [], "types": [], "scores": [], "noise": [], "labels": []}, "has no tokens"),
    ],
)
def test_a_broken_sample_is_left_out_with_a_word(run, broken, expected):
    sample = json.loads((run / "sample.json").read_text())
    (run / "sample.json").write_text(json.dumps(sample | broken))
    left = read_run(run)
    (remark,) = left.remarks[:1]
    assert remark.startswith("Left out the sample: sample.json")
    assert expected in remark
    assert left.sample is None


def test_a_baseline_killed_before_its_first_step_is_left_out_with_a_word(run):
    (run / "baseline" / "metrics.jsonl").write_text("")
    page = Page(write_report(run))
    assert "Left out the baseline" in page.text
    assert "step time of plain CE" not in page.text


def test_a_name_of_a_run_cannot_inject_markup(run):
    write_config(run, name="<script>alert(1)</script>")
    assert "<script>" not in write_report(run).read_text()


def test_the_same_run_gives_the_same_bytes(run):
    expected = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == expected


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl"])
def test_a_folder_that_is_no_run_is_one_clear_error(run, missing):
    (run / missing).unlink()
    with pytest.raises(ValueError, match=rf"is no run: it has no {missing}; give the folder a run wrote") as error:
        write_report(run)
    assert "\n" not in str(error.value)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("text", ["learning_rate: 3", "name: [1", "just words"])
def test_a_config_of_something_else_is_one_clear_error(run, text):
    (run / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"^\S+config\.yaml[:,] ") as error:
        write_report(run)
    assert "\n" not in str(error.value)
