"""The longest sequence on which a CDT step trains on this device, activations computed again in the backward pass.

Each row is a run of two steps: Adam's state comes with the first and weighs on the second. ``--lengths`` tries those
only, in place of a search: with ``--layers 32``, the rows of the whole 8B. ``--set`` has overrides of the run, as
``optim.offload=0.8 trainer.grad_dtype=bf16 trainer.mlp_chunks=8``: all of an 8B's Adam would take 128 GB of the host.
With ``trainer.devices=2`` and a layout it trains on two; figures are those of the slowest and the fullest.
"""

import argparse
from collections.abc import Iterator

from benchmarks import runs
from benchmarks.measured import SEARCH, Row, attempted, longest


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    def attempt(length: int) -> Row:
        return attempted(trained, length, arguments)

    settings = {"layers": arguments.layers, "set": " ".join(arguments.set), "labels": arguments.labels}
    tries = ({"seq_length": n} | attempt(n) for n in arguments.lengths or [])
    for row in tries if arguments.lengths else longest(attempt, *SEARCH):
        yield settings | row


def trained(length: int, arguments: argparse.Namespace) -> Row:
    with runs.folder() as folder:
        overrides = runs.words(
            runs.model(arguments.layers, longest=length),
            runs.write_rows(folder / "rows.jsonl", seq_length=length, labels=arguments.labels),
            f"output={folder}/run trainer.max_steps=2 trainer.recompute=full",
            *arguments.set,
        )
        config = runs.composed(overrides)
        devices = config.trainer.world_size
        ranks = [runs.fit(config)] if devices == 1 else runs.fit_on(devices, overrides, folder)
    names = {"step_s": "seconds", "detection_s": "detection_time", "peak_memory_gib": "peak_memory_gib"}
    found: Row = {ours: max(steps[-1][name] or 0.0 for steps in ranks) for ours, name in names.items()}
    return found | {
        "tokens_per_s": length / found["step_s"],
        "losses": [step["reduced_train_loss"] for step in ranks[0]],
    }
