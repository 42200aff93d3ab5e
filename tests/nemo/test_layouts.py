"""Every layout gives the answer of one process: masks, deltas, gradients (Adam's first moment) and weights."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from nemo_cdt import config as c
from nemo_cdt.data.documents import IGNORE
from nemo_cdt.megatron.context import row_positions
from nemo_cdt.objectives.cdt import DetectionRecompute
from tests import jobs
from tests.ranks import on_ranks
from tests.runs import TINY, VOCABULARY, small_run, write_documents

MODEL = replace(TINY, num_layers=4)
DELTA = 1e-6  # fp32, deltas of up to 0.1
STATE = 1e-5  # fp32: weights, and Adam's first moment of gradients of norm up to 1


@dataclass
class Layout:
    ranks: int
    parallel: c.Parallel = field(default_factory=c.Parallel)
    trainer: dict[str, Any] = field(default_factory=dict)
    detection_recompute: DetectionRecompute = DetectionRecompute.none


LAYOUTS = {
    "DP2": Layout(2),
    "DP2 overlapped": Layout(2, c.Parallel(overlap_grad_reduce=True, overlap_param_gather=True)),
    "TP2": Layout(2, c.Parallel(tensor=2)),
    "TP2+SP": Layout(2, c.Parallel(tensor=2, sequence=True)),
    "CP2": Layout(2, c.Parallel(context=2)),
    "PP2": Layout(2, c.Parallel(pipeline=2)),
    "PP2 interleaved": Layout(2, c.Parallel(pipeline=2, virtual_pipeline=2)),
    "PP4": Layout(4, c.Parallel(pipeline=4)),
    "CP4": Layout(4, c.Parallel(context=4)),
    "TP2+SP CP2": Layout(4, c.Parallel(tensor=2, sequence=True, context=2)),
    "TP2 PP2": Layout(4, c.Parallel(tensor=2, pipeline=2)),
    "TP2+SP PP2 interleaved": Layout(4, c.Parallel(tensor=2, sequence=True, pipeline=2, virtual_pipeline=2)),
    "CP2 PP2": Layout(4, c.Parallel(context=2, pipeline=2)),
    "CP2 DP2": Layout(4, c.Parallel(context=2)),
    "TP2+SP DP2 overlapped": Layout(
        4, c.Parallel(tensor=2, sequence=True, overlap_grad_reduce=True, overlap_param_gather=True)
    ),
    "PP2 DP2": Layout(4, c.Parallel(pipeline=2)),
    "PP2 interleaved DP2 overlapped": Layout(
        4, c.Parallel(pipeline=2, virtual_pipeline=2, overlap_grad_reduce=True, overlap_param_gather=True)
    ),
    "full recompute": Layout(1, trainer={"recompute": c.Recompute.full}),
    "selective recompute": Layout(1, trainer={"recompute": c.Recompute.selective}),
    "TP2+SP full recompute, in detection too": Layout(
        2,
        c.Parallel(tensor=2, sequence=True),
        trainer={"recompute": c.Recompute.full},
        detection_recompute=DetectionRecompute.full,
    ),
    "TP2+SP full recompute, MLP in 3 chunks": Layout(
        2, c.Parallel(tensor=2, sequence=True), trainer={"recompute": c.Recompute.full, "mlp_chunks": 3}
    ),
    "DP2 overlapped, full recompute, MLP in 3 chunks": Layout(
        2,
        c.Parallel(overlap_grad_reduce=True, overlap_param_gather=True),
        trainer={"recompute": c.Recompute.full, "mlp_chunks": 3},
        detection_recompute=DetectionRecompute.full,
    ),
    "selective recompute in detection alone": Layout(1, detection_recompute=DetectionRecompute.selective),
    "1 micro-batch of 8 rows": Layout(1, trainer={"micro_batch_size": 8}),
    "2 micro-batches of 4 rows": Layout(1, trainer={"micro_batch_size": 4}),
}  # fmt: skip


@dataclass
class Shared:
    """What all runs of this module start from."""

    folder: Path

    def run(self, name: str, layout: Layout, *, pack: bool = False, mutate: str | None = None) -> list[dict[str, Any]]:
        config = small_run(self.folder / name.replace(" ", "_"), self.folder / "d.jsonl", global_batch=8)
        config.model, config.parallel = MODEL, layout.parallel
        config.objective.detection_recompute = layout.detection_recompute
        config.init.nemo = str(self.folder / "nemo")
        config.trainer = replace(config.trainer, devices=layout.ranks, **layout.trainer)
        if pack:  # 2 documents of 44 to 60 tokens a row: the batch of 8 documents in 4 rows
            config.data = replace(config.data, pack=True, seq_length=128, document_length=64)
            config.trainer.global_batch_size = 4
        return on_ranks(jobs.train_and_read, layout.ranks, config, mutate)


DOCUMENTS: dict[str, Any] = {"kind": "sft", "count": 60, "shortest": 44, "longest": 60}


@pytest.mark.parametrize("ranks", [2, 4])
def test_labels_are_uneven_and_some_context_parallel_ranks_have_none(ranks: int, tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "d.jsonl", **DOCUMENTS)[:24]  # those of three steps
    labelled = torch.stack([pad(labels[1:] != IGNORE, (0, 65 - len(labels))) for _, labels in documents])
    counts = torch.stack([labelled[:, row_positions([0, 64], ranks, rank)].sum(dim=1) for rank in range(ranks)])
    assert {*counts.sum(dim=0).tolist()} == {1, 2, 3, 4, 5}
    assert (counts == 0).any(dim=1).all()  # every rank in some micro-batch
    assert (counts > 0).any(dim=1).all()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    folder = tmp_path_factory.mktemp("layouts")
    write_documents(folder / "d.jsonl", **DOCUMENTS)
    on_ranks(jobs.initial, 1, MODEL, VOCABULARY, folder / "hf", folder / "nemo")
    return Shared(folder)


@pytest.fixture(scope="module")
def expected(shared: Shared) -> dict[str, Any]:
    return shared.run("expected", Layout(1))[0]


def by_token(ranks: list[dict[str, Any]], per_row: int) -> dict[tuple, tuple[bool, np.ndarray, float]]:
    """(step, document of the batch, position in it) -> noise, delta, score by threshold; of all ranks together."""
    found: dict[tuple, tuple[bool, np.ndarray, float]] = {}
    for rank in ranks:
        for row in rank["detections"]:
            for index, position in enumerate(row["positions"]):
                document = row["row"] * per_row + row["documents"][index]
                threshold = row["threshold"][document % len(row["threshold"])]
                value = (bool(row["noise"][index]), row["delta"][index], row["score"][index] / threshold)
                key = (row["step"], int(document), int(position))
                if key in found:
                    np.testing.assert_array_equal(found[key][1], value[1])  # tensor-parallel ranks hold copies
                found[key] = value
    return found


def padding(run: dict[str, Any]) -> list[float]:
    return [step["padding_fraction"] for step in run["metrics"]]


def assert_same(ranks: list[dict[str, Any]], expected: dict[str, Any], per_row: int = 1) -> None:
    ours, theirs = by_token(ranks, per_row), by_token([expected], 1)
    assert ours.keys() == theirs.keys()
    ties = [key for key, (*_, relative) in theirs.items() if abs(relative - 1) < 1e-5]
    assert len(ties) < 3, f"too many scores at the threshold to say anything: {ties}"
    for key, (noise, delta, _) in theirs.items():
        if key not in ties:
            assert ours[key][0] == noise, f"mask differs at (step, row, position) {key}"
            np.testing.assert_allclose(ours[key][1], delta, atol=DELTA)
    last = next(rank for rank in ranks if rank["losses"][0] > 0)
    np.testing.assert_allclose(last["losses"], expected["losses"], atol=1e-5)
    if per_row == 1:
        for rank in ranks:
            np.testing.assert_allclose(padding(rank), padding(expected), atol=1e-6)
    for name, value in expected["state"].items():
        np.testing.assert_allclose(ranks[0]["state"][name], value, atol=STATE, err_msg=name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_the_answer_of_one_process(name: str, shared: Shared, expected: dict[str, Any]) -> None:
    assert_same(shared.run(name, LAYOUTS[name]), expected)


PACKED = ("one process", "TP2+SP", "CP2", "PP2", "PP4", "CP2 DP2", "CP2 PP2", "TP2+SP CP2")
LAYOUTS_PACKED = {"one process": Layout(1), **LAYOUTS}


@pytest.mark.parametrize("name", PACKED)
def test_packed_documents_give_the_answer_of_one_by_one(name: str, shared: Shared, expected: dict[str, Any]) -> None:
    assert_same(shared.run(f"packed {name}", LAYOUTS_PACKED[name], pack=True), expected, per_row=2)


@pytest.mark.parametrize(
    ("mutation", "name", "pack"),
    [
        ("threshold_all_reduce_dropped", "CP2", False),
        ("threshold_all_reduce_dropped", "TP2+SP", False),
        ("label_counts_of_one_rank", "CP2", False),
        ("boundaries_ignored", "PP2", True),
        ("zigzag_ignored", "CP2", False),
    ],
)
def test_a_mutated_layout_is_noticed(
    mutation: str, name: str, pack: bool, shared: Shared, expected: dict[str, Any]
) -> None:
    ranks = shared.run(f"{mutation} {name}", LAYOUTS[name], pack=pack, mutate=mutation)
    with pytest.raises(AssertionError):
        assert_same(ranks, expected, per_row=2 if pack else 1)
