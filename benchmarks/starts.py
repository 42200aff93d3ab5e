"""Starts the same run from random weights N times in a row: the first losses must be finite and equal.

NeMo 2.7.3 copies parameters that are still being initialised: see nemo_cdt/nemo/strategy.py. ``--racy`` runs it as is.
"""

import argparse
from collections.abc import Iterator

from benchmarks import runs
from benchmarks.measured import Row, attempted, on_gpu

LENGTH = 8192 if on_gpu() else 1024


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    if arguments.racy:
        with runs.devices():
            ship_the_race()
    for length in arguments.lengths or [LENGTH]:
        for index in range(arguments.starts):
            yield {"start": index, "seq_length": length} | attempted(start, length, arguments)


def start(length: int, arguments: argparse.Namespace) -> Row:
    """The first step's figures, and each step's. Rows are multi-hop questions, the same in every start."""
    with runs.folder() as folder:
        settings = f"data.seq_length={length} output={folder}/run trainer.max_steps={arguments.steps}"
        steps = runs.fit(runs.configured(runs.model(arguments.layers, longest=length), settings))
    return steps[0] | {"steps": steps}


def ship_the_race() -> None:
    from nemo import lightning as nl

    from nemo_cdt.nemo import assemble

    assemble.SynchronizedStrategy, assemble.SynchronizedPrecision = nl.MegatronStrategy, nl.MegatronMixedPrecision
