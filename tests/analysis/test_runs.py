"""A run of ours under analysis: its layout does not show. Checkpoints are converted as ``nemo-cdt analyze`` does it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_cdt import config as c
from nemo_cdt.analysis.analyzed_model import load, opened
from nemo_cdt.analysis.observe import Observation, observe
from nemo_cdt.analysis.samples import Sample
from nemo_cdt.evaluation.model import read_config
from tests import jobs
from tests.ranks import on_ranks
from tests.runs import TINY, VOCABULARY, small_run, write_documents

LAYOUTS = {"one process": c.Parallel(), "TP2": c.Parallel(tensor=2), "CP2": c.Parallel(context=2)}
TOKENS, TOP_K = 60, 5
TOLERANCE = 1e-4  # fp32, of the largest score; the weights themselves agree within 1e-5


def observed(model: Path) -> Observation:
    """A sequence of all types whose last four tokens are the answer."""
    random = np.random.default_rng(7)
    ids = random.integers(VOCABULARY, size=TOKENS + 1)
    rows = np.arange(TOKENS - 4, TOKENS)
    one = Sample(where="", input_ids=ids[:-1], types=np.arange(TOKENS) % 6, rows=rows, answer=ids[rows + 1])
    with opened(model) as folder:
        analyzed = load(folder, read_config(folder), c.Precision.fp32, torch.device("cpu"))
        return observe(analyzed, one, TOP_K)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each layout, from the same weights, and those weights in ``hf``."""
    folder = tmp_path_factory.mktemp("runs")
    write_documents(folder / "d.jsonl", kind="sft", count=20, shortest=44, longest=60)
    on_ranks(jobs.initial, 1, TINY, VOCABULARY, folder / "hf", folder / "nemo")
    for name, parallel in LAYOUTS.items():
        config = small_run(folder / name, folder / "d.jsonl", steps=2)
        config.parallel, config.init.nemo = parallel, str(folder / "nemo")
        config.trainer.devices = parallel.model_size
        on_ranks(jobs.train_and_read, config.trainer.devices, config)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> Observation:
    return observed(folder / "one process")


def differences(one: Observation, other: Observation) -> dict[str, float]:
    """Of ig by head and token, and of the gradient by token, each of the largest."""
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in ("ig_LHT", "ig_N", "gradient_N")}
    return {name: float(np.abs(a - b).max() / np.abs(b).max()) for name, (a, b) in pairs.items()}


@pytest.mark.parametrize("name", ["TP2", "CP2"])
def test_ig_and_gradient_are_those_of_a_run_on_one_process(name: str, folder: Path, expected: Observation) -> None:
    found = observed(folder / name)

    assert max(differences(found, expected).values()) < TOLERANCE
    assert found.correct == expected.correct
    assert found.loss == pytest.approx(expected.loss, abs=TOLERANCE)


def test_what_training_changed_is_seen(folder: Path, expected: Observation) -> None:
    assert min(differences(observed(folder / "hf"), expected).values()) > 10 * TOLERANCE
