"""Packed rows of the alignment set's lengths, dealt by cost and filled in order: what is padding, who waits, how fast.

The first rows are simulated: of so many data-parallel ranks the share of their time in which they wait for the one with
most to do, and of positions that are padding, by the code's own packers and cost model (Llama-3.1-8B). The others are
measured, on this device: useful tokens a second of CDT steps of the same documents under both packings.
"""

import argparse
import json
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import runs
from benchmarks.measured import Row, attempted, on_gpu, repeated, shape
from nemo_cdt.config import Config
from nemo_cdt.config.compose import compose
from nemo_cdt.cost.steptime import document_cost
from nemo_cdt.data.balanced import BalancedSteps
from nemo_cdt.data.rows import PackedRows

LENGTHS = (131072,) if on_gpu() else (1024,)
RANKS = {1: 16, 2: 16, 4: 16, 8: 16, 16: 32, 32: 64}
"""Of data-parallel ranks, and the rows of a step."""
SIMULATED = ("alignment_llama31_8b_128k", (131072, 32768), 30)
"""The experiment, the lengths of its rows, and the steps."""
DOCUMENTS, STEPS, WARM_UP = (16, 3, 1) if on_gpu() else (8, 3, 1)
"""Measured: documents of a step, and steps, of which the first do not count."""


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    yield from simulated()
    for length in arguments.lengths or LENGTHS:
        with runs.folder() as folder:
            of_step = write_documents(folder / "rows.jsonl", length)
            for packing in ("sequential", "balanced"):
                row: Row = {"seq_length": length, "packing": packing, "rows": of_step[packing]}
                yield row | attempted(measured, folder, row, arguments)


def alignment_lengths(count: int, longest: int, seed: int = 0) -> np.ndarray:
    """Of documents as in the alignment set: 7 of 8 uniform from an eighth of ``longest`` to it, one about an eighth."""
    rng = np.random.default_rng(seed)
    short = rng.normal(longest / 8, longest / 80, count).clip(longest / 16, longest / 6)
    return np.where(rng.random(count) < 1 / 8, short, rng.uniform(longest / 8, longest, count)).astype(int)


def simulated() -> Iterator[Row]:
    experiment, lengths, steps = SIMULATED
    config: Config = compose([f"experiment={experiment}"])
    for longest in lengths:
        lengths_of = _Lengths(alignment_lengths(100 * steps * max(RANKS.values()) // 16, longest))
        cost = partial(document_cost, config)
        for ranks, count in RANKS.items():
            balanced = BalancedSteps(
                lengths_of, longest, steps=steps, rows=count, cost=cost, multiple=8, row_multiple=16
            )
            yield {
                "simulated": experiment, "seq_length": longest, "ranks": ranks, "rows": count,
                **_sequential(lengths_of, longest, ranks, count, cost, steps), **_balanced(balanced, ranks),
            }  # fmt: skip


def _sequential(lengths: "_Lengths", longest: int, ranks: int, count: int, cost: Any, steps: int) -> Row:
    packed = PackedRows(lengths, longest, count=steps * count, multiple=8)
    members = [[lengths.length(i) - 1 for i in range(*edges)] for edges in pairwise(packed.first)]
    padded = [longest - sum(row) for row in members]
    of_row = [sum(map(cost, row)) + cost(rest) for row, rest in zip(members, padded, strict=True)]  # it is attended to
    of_rank = np.reshape(of_row, (steps, -1, ranks)).sum(axis=1)
    useful = sum(cost(length) for row in members for length in row)
    return {
        "sequential_padding": sum(padded) / longest / len(members),
        "sequential_idle": float(np.mean(1 - of_rank.mean(axis=1) / of_rank.max(axis=1))),
        "sequential_useful": useful / float(of_rank.max(axis=1).sum()) / ranks,
    }


def _balanced(steps: BalancedSteps, ranks: int) -> Row:
    slowest, positions, used, micro_batches = 0.0, 0, 0, []
    for step in range(len(steps)):
        dealt = steps.dealt(step, ranks)
        slowest += max(sum(steps.cost(steps.lengths[n]) for row in rank for n in row) for rank in dealt)
        positions += sum(steps.row_length(row) for rank in dealt for row in rank)
        micro_batches.append(len(dealt[0]))
    used = sum(steps.lengths)
    return {
        "balanced_padding": 1 - used / positions,
        "balanced_idle": float(np.mean([steps.idle(step, ranks) for step in range(len(steps))])),
        "balanced_useful": sum(map(steps.cost, steps.lengths)) / slowest / ranks,
        "micro_batches": float(np.mean(micro_batches)),
    }


class _Lengths:
    truncated = (0, 0)

    def __init__(self, lengths: np.ndarray) -> None:
        self._lengths = lengths

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("nobody reads them")

    def length(self, index: int) -> int:
        return int(self._lengths[index])


def step_of(longest: int) -> tuple[np.ndarray, dict[str, int]]:
    """Lengths of documents that are a step under either packing, and the rows that each has for them.

    Of the alignment set's lengths the first draw on whose padding, packed in order, is within a hundredth of the mean
    of many draws, and after which neither packing has room for the step's first document once more.
    """
    for seed in range(10000):
        lengths = alignment_lengths(DOCUMENTS, longest, seed)
        again = _Lengths(np.tile(lengths, 10))
        rows = {"balanced": -(-int(sum(lengths)) // longest), "sequential": 0}
        ends = PackedRows(again, longest, count=DOCUMENTS + 1).first
        if DOCUMENTS not in ends or rows["balanced"] * longest - sum(lengths) >= lengths[0]:
            continue
        rows["sequential"] = ends.index(DOCUMENTS)
        if abs(1 - sum(lengths) / longest / rows["sequential"] - 0.25) < 0.01:
            return lengths, rows
    raise AssertionError("no such documents")


def write_documents(path: Path, longest: int) -> dict[str, int]:
    """Random tokens, of which an answer's are labelled: the same documents in each step. The rows of each packing."""
    rng = np.random.default_rng(1)
    lengths, rows = step_of(longest)
    with path.open("w") as file:
        for length in np.tile(lengths, STEPS + 1) + 1:
            ids = rng.integers(0, shape(None).vocab_size, length).tolist()
            labels = [-100] * (length - runs.FEW) + ids[-runs.FEW :]
            file.write(json.dumps({"input_ids": ids, "labels": labels}) + "\n")
    return rows


def measured(folder: Path, row: Row, arguments: argparse.Namespace) -> Row:
    length = row["seq_length"]
    data = f"data=jsonl data.path={folder}/rows.jsonl data.seq_length={length} data.pack=true data.shuffle=false"
    own = f"data.packing={row['packing']} data.num_workers=1 output={folder}/{row['packing']}"
    steps = f"trainer.max_steps={STEPS} trainer.global_batch_size={row['rows']} trainer.recompute=full"
    detection = "objective=cdt objective.detection_recompute=none"
    words = runs.words(runs.model(arguments.layers, longest=length), data, own, detection, steps, *arguments.set)
    done = runs.fit(runs.composed([word for word in words if word != "trainer.global_batch_size=1"]))[WARM_UP:]
    tokens = [step["tokens_per_second"] * step["step_time"] for step in done]
    return {
        "tokens": tokens,
        "step_s": [step["seconds"] for step in done],
        "padding": [step["padding_fraction"] for step in done],
        "useful_tokens_per_s": sum(tokens) / sum(step["seconds"] for step in done),
        "detection_s": repeated([step["detection_time"] for step in done]),
        "peak_memory_gib": max(step["peak_memory_gib"] or 0 for step in done),
        "losses": [step["reduced_train_loss"] for step in done],
    }
