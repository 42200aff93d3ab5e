"""What a step logs of detection can be compared with what it logs of training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_cdt.config import Packing
from nemo_cdt.data.documents import IGNORE
from tests import jobs
from tests.nemo.test_layouts import LAYOUTS, MODEL, Layout
from tests.ranks import on_ranks
from tests.runs import small_run, write_documents

ROUNDING = 2**-22
"""Of a few sums in fp32."""
DOCUMENTS: dict[str, Any] = {"kind": "sft", "count": 40, "shortest": 20, "longest": 60}
CASES = {
    "one micro-batch of 4 documents": (Layout(1, trainer={"micro_batch_size": 4}), False),
    "4 micro-batches": (Layout(1), False),
    "packed": (Layout(1), True),
    "DP2, 2 micro-batches each": (LAYOUTS["DP2"], False),
    "DP2, packed": (LAYOUTS["DP2"], True),
    "CP2, packed": (LAYOUTS["CP2"], True),
    "TP2+SP": (LAYOUTS["TP2+SP"], False),
    "PP2 interleaved": (LAYOUTS["PP2 interleaved"], False),
}


def losses(folder: Path, case: str, mutate: str | None = None) -> list[tuple[float, float]]:
    """``loss`` and ``detection_loss`` of each step with beta = 0, as the ranks that log them have them."""
    layout, pack = CASES[case]
    write_documents(folder / "d.jsonl", **DOCUMENTS)
    config = small_run(folder / "run", folder / "d.jsonl", steps=2, beta=0.0, model=MODEL, parallel=layout.parallel)
    config.trainer = replace(config.trainer, devices=layout.ranks, **layout.trainer)
    if pack:  # at least 2 documents a row
        config.data = replace(config.data, pack=True, packing=Packing.sequential, seq_length=128, document_length=64)
    ranks = on_ranks(jobs.train, layout.ranks, config, mutate)
    steps = [step for rank in ranks for step in rank["metrics"]]
    found = [(step["reduced_train_loss"], step["detection_loss"]) for step in steps if step["reduced_train_loss"]]
    assert len(found) >= 2
    return found


@pytest.mark.parametrize("case", CASES)
def test_without_a_shift_the_loss_before_denoising_is_the_loss(case: str, tmp_path: Path) -> None:
    for loss, before in losses(tmp_path, case):
        assert before == (loss if case == "one micro-batch of 4 documents" else pytest.approx(loss, rel=ROUNDING))


@pytest.mark.parametrize("case", ["one micro-batch of 4 documents", "DP2, packed"])
def test_a_mean_over_documents_is_noticed(case: str, tmp_path: Path) -> None:
    found = losses(tmp_path, case, "documents_weigh_the_same")
    assert all(before != pytest.approx(loss, rel=1e-4) for loss, before in found)


def rates(folder: Path, mutate: str | None = None) -> tuple[list[float], list[int]]:
    """Tokens of each step by its rate and its time; and those that were fed."""
    documents = write_documents(folder / "d.jsonl", **DOCUMENTS)
    config = small_run(folder / "run", folder / "d.jsonl", steps=2)
    config.trainer.devices = 2
    steps = on_ranks(jobs.train, 2, config, mutate)[0]["metrics"]
    fed = [sum(len(ids) - 1 for ids, _ in documents[4 * step : 4 * step + 4]) for step in range(2)]
    return [step["tokens_per_second"] * step["step_time"] for step in steps], fed


def test_padding_is_no_token_of_tokens_per_second(tmp_path: Path) -> None:
    found, fed = rates(tmp_path)
    assert found == pytest.approx(fed, rel=1e-5)


def test_counting_padding_is_noticed(tmp_path: Path) -> None:
    found, fed = rates(tmp_path, "padding_is_tokens")
    assert found != pytest.approx(fed, rel=1e-2)


def test_documents_have_different_label_counts(tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "d.jsonl", **DOCUMENTS)
    counts = [int(torch.count_nonzero(labels[1:] != IGNORE)) for _, labels in documents[:4]]
    assert len({*counts}) > 1
