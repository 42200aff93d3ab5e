"""The longest sequence on which a CDT step trains on this device, activations computed again in the backward pass.

Each row is a run of two steps: Adam's state comes with the first and weighs on the second. ``--lengths`` tries those
only, in place of a search: with ``--layers 32``, the rows of the whole 8B. ``--optimizer`` says how Adam keeps its 12
bytes a weight: fp32 as Megatron does, bf16 with moments in bf16 (8 bytes; Transformer Engine's Adam), or cpu with half
of it in the host's memory, where all of an 8B's would take 128 GB.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from benchmarks import runs
from benchmarks.measured import SEARCH, Row, attempted, longest


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    def attempt(length: int) -> Row:
        return attempted(trained, length, arguments)

    settings = {"layers": arguments.layers, "optimizer": arguments.optimizer, "labels": arguments.labels}
    tries = ({"seq_length": n} | attempt(n) for n in arguments.lengths or [])
    for row in tries if arguments.lengths else longest(attempt, *SEARCH):
        yield settings | row


def trained(length: int, arguments: argparse.Namespace) -> Row:
    with runs.folder() as folder:
        config = runs.configured(
            runs.model(arguments.layers, longest=length),
            runs.write_rows(folder / "rows.jsonl", seq_length=length, labels=arguments.labels),
            f"output={folder}/run trainer.max_steps=2 trainer.recompute=full",
        )
        last = runs.fit(config, lambda trainer, model: place_optimizer(model, arguments.optimizer))[-1]
    names = {"step_s": "seconds", "detection_s": "detection_time", "peak_memory_gib": "peak_memory_gib"}
    return {ours: last[name] for ours, name in names.items()} | {"tokens_per_s": length / last["seconds"]}


def place_optimizer(model: Any, where: str) -> None:
    """Megatron's settings, which ``optim`` has no keys for."""
    if where == "fp32":
        return
    import torch

    config = model.optim.config
    config.use_precision_aware_optimizer = True
    if where == "bf16":
        config.exp_avg_dtype = config.exp_avg_sq_dtype = torch.bfloat16
    else:
        config.optimizer_cpu_offload, config.optimizer_offload_fraction = True, 0.5
    config.__post_init__()
