"""Every layout gives the answer of one process: masks, deltas, gradients (Adam's first moment) and weights."""

import json
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

    def run(
        self, name: str, layout: Layout, *, packing: c.Packing | None = None, mutate: str | None = None
    ) -> list[dict[str, Any]]:
        config = small_run(self.folder / name.replace(" ", "_"), self.folder / "d.jsonl", global_batch=8)
        config.model, config.parallel = MODEL, layout.parallel
        config.objective.detection_recompute = layout.detection_recompute
        config.init.nemo = str(self.folder / "nemo")
        config.trainer = replace(config.trainer, devices=layout.ranks, **layout.trainer)
        if packing:  # 2 documents of 44 to 60 tokens a row, or as they are dealt: the batch of 8 documents in 4 rows
            length = {c.Packing.sequential: 128, c.Packing.balanced: BALANCED}[packing]
            config.data = replace(config.data, pack=True, packing=packing, seq_length=length, document_length=64)
            config.trainer.global_batch_size = 4
        return on_ranks(jobs.train_and_read, layout.ranks, config, mutate)


BALANCED = 112  # 4 rows of it have room for the 8 documents of each step, and for no 9th
DOCUMENTS: dict[str, Any] = {"kind": "sft", "count": 60, "shortest": 44, "longest": 60, "seed": 1}


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


Token = tuple[int, tuple[int, ...], int]
"""The step, all tokens of the document, and the position in it: whatever row the document is in."""


def by_token(ranks: list[dict[str, Any]]) -> dict[Token, tuple[bool, np.ndarray, float]]:
    """Noise, delta, score by threshold; of all ranks together."""
    tokens: dict[tuple, dict[int, int]] = {}
    found: dict[tuple, tuple[bool, np.ndarray, float]] = {}
    for rank in ranks:
        for row in rank["detections"]:
            for index, position in enumerate(row["positions"]):
                document = int(row["documents"][index])
                relative = row["score"][index] / row["threshold"][document]
                value = (bool(row["noise"][index]), row["delta"][index], relative)
                place = (row["step"], row["row"], document)
                if (place, position) in found:
                    np.testing.assert_array_equal(found[place, position][1], value[1])  # of tensor-parallel ranks
                found[place, position] = value
                tokens.setdefault(place, {})[int(position)] = int(row["tokens"][index])
    named = {place: tuple(token for _, token in sorted(of.items())) for place, of in tokens.items()}
    assert len({(place[0], tokens) for place, tokens in named.items()}) == len(named)  # each document at one place
    return {(place[0], named[place], int(position)): value for (place, position), value in found.items()}


def padding(run: dict[str, Any]) -> list[float]:
    return [step["padding_fraction"] for step in run["metrics"]]


def assert_same(ranks: list[dict[str, Any]], expected: dict[str, Any], *, packed: bool = False) -> None:
    ours, theirs = by_token(ranks), by_token([expected])
    assert ours.keys() == theirs.keys()
    ties = [key for key, (*_, relative) in theirs.items() if abs(relative - 1) < 1e-5]
    assert len(ties) < 3, f"too many scores at the threshold to say anything: {ties}"
    for key, (noise, delta, _) in theirs.items():
        if key not in ties:
            assert ours[key][0] == noise, f"mask differs at (step, document, position) {key}"
            np.testing.assert_allclose(ours[key][1], delta, atol=DELTA)
    last = next(rank for rank in ranks if rank["losses"][0] > 0)
    np.testing.assert_allclose(last["losses"], expected["losses"], atol=1e-5)
    if not packed:
        for rank in ranks:
            np.testing.assert_allclose(padding(rank), padding(expected), atol=1e-6)
    for name, value in expected["state"].items():
        np.testing.assert_allclose(ranks[0]["state"][name], value, atol=STATE, err_msg=name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_the_answer_of_one_process(name: str, shared: Shared, expected: dict[str, Any]) -> None:
    assert_same(shared.run(name, LAYOUTS[name]), expected)


PACKED = ("one process", "TP2+SP", "CP2", "PP2", "PP4", "CP2 DP2", "CP2 PP2", "TP2+SP CP2")
DEALT = ("one process", "DP2 overlapped", "CP2 DP2", "TP2+SP CP2", "TP2 PP2", "PP2 interleaved DP2 overlapped")
LAYOUTS_PACKED = {"one process": Layout(1), **LAYOUTS}


@pytest.mark.parametrize(
    ("packing", "name"),
    [*((c.Packing.sequential, name) for name in PACKED), *((c.Packing.balanced, name) for name in DEALT)],
)
def test_packed_documents_give_the_answer_of_one_by_one(
    packing: c.Packing, name: str, shared: Shared, expected: dict[str, Any]
) -> None:
    assert_same(shared.run(f"{packing} {name}", LAYOUTS_PACKED[name], packing=packing), expected, packed=True)


@pytest.mark.parametrize(
    ("mutation", "name", "packing"),
    [
        ("threshold_all_reduce_dropped", "CP2", None),
        ("threshold_all_reduce_dropped", "TP2+SP", None),
        ("label_counts_of_one_rank", "CP2", None),
        ("boundaries_ignored", "PP2", c.Packing.sequential),
        ("boundaries_ignored", "DP2", c.Packing.balanced),
        ("zigzag_ignored", "CP2", None),
    ],
)
def test_a_mutated_layout_is_noticed(
    mutation: str, name: str, packing: c.Packing | None, shared: Shared, expected: dict[str, Any]
) -> None:
    ranks = shared.run(f"{mutation} {name}", LAYOUTS[name], packing=packing, mutate=mutation)
    with pytest.raises(AssertionError):
        assert_same(ranks, expected, packed=packing is not None)


@pytest.mark.parametrize("name", ["DP2", "PP2 DP2", "PP2 interleaved DP2 overlapped"])
def test_a_rank_with_nothing_left_in_a_micro_batch_takes_part_in_it(name: str, shared: Shared, tmp_path: Path) -> None:
    """In each step one rank has a document of 60 tokens, and the other two of 31, which no row holds together."""
    file = tmp_path / "uneven.jsonl"
    rng = np.random.default_rng(0)
    with file.open("w") as rows:
        for length in 3 * [61, 32, 32] + 8 * [50]:
            ids = rng.integers(0, VOCABULARY, size=length).tolist()
            rows.write(json.dumps({"input_ids": ids, "labels": [IGNORE] * (length - 3) + ids[-3:]}) + "\n")

    def run(name: str, layout: Layout, **data: Any) -> list[dict[str, Any]]:
        config = small_run(tmp_path / name.replace(" ", "_"), file, global_batch=3)
        config.model, config.parallel, config.init.nemo = MODEL, layout.parallel, str(shared.folder / "nemo")
        config.trainer.devices = layout.ranks
        if data:
            config.data = replace(config.data, pack=True, **data)
            config.trainer.global_batch_size = 2
        return on_ranks(jobs.train_and_read, layout.ranks, config)

    [expected] = run("expected", Layout(1))
    assert_same(run(name, LAYOUTS[name], seq_length=61, document_length=61), expected, packed=True)


def train_and_count_gathers(config: c.Config) -> tuple[int, list[int]]:
    """How many groups of parameters there are, and how often one was gathered in each step."""
    from megatron.core.distributed import param_and_grad_buffer

    groups: set[int] = set()
    gathers: list[int] = []
    right = param_and_grad_buffer._ParamAndGradBucketGroup.start_param_sync

    def start_param_sync(group: Any, *arguments: Any, **named: Any) -> None:
        groups.add(id(group))
        gathers.append(steps())
        right(group, *arguments, **named)

    def steps() -> int:
        return len(seen)

    seen: list[int] = []
    end = jobs.Seen.on_train_batch_end

    def on_train_batch_end(callback: Any, *arguments: Any) -> None:
        end(callback, *arguments)
        seen.append(1)

    jobs.Seen.on_train_batch_end = on_train_batch_end  # type: ignore[method-assign]
    param_and_grad_buffer._ParamAndGradBucketGroup.start_param_sync = start_param_sync
    jobs.train(config)
    return len(groups), [gathers.count(step) for step in range(len(seen))]


def test_weights_are_gathered_once_a_step_and_not_before_each_detection(shared: Shared) -> None:
    config = small_run(shared.folder / "gathers", shared.folder / "d.jsonl", global_batch=8)
    config.parallel, config.trainer.devices = LAYOUTS["DP2 overlapped"].parallel, 2  # 4 micro-batches a rank
    config.trainer.checkpoint_interval = 0
    for groups, gathers in on_ranks(train_and_count_gathers, 2, config):
        assert groups > 0
        assert gathers[1:] == [groups] * 2  # before the first all ranks have what they started from
