"""Steps of CDT and of plain training through the front end that is installed here: NeMo's, or Megatron-Bridge's.

A row is a length and an objective. To compare the two, run it in the environment of each on the same device.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks import runs
from benchmarks.measured import Row, attempted, on_gpu, repeated
from nemo_cdt.frameworks import framework_of
from nemo_cdt.training import train

LENGTHS = (8192,) if on_gpu() else (256,)
WARM_UP = 3


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    for length in arguments.lengths or LENGTHS:
        for objective in ("ce", "cdt"):
            row: Row = {"seq_length": length, "objective": objective}
            yield row | attempted(measured, row, arguments)


def measured(row: Row, arguments: argparse.Namespace) -> Row:
    with runs.folder() as folder:
        data = runs.write_rows(folder / "rows.jsonl", seq_length=row["seq_length"], labels=arguments.labels)
        steps = f"trainer.max_steps={arguments.repetitions + WARM_UP} data.num_workers=1 output={folder}/run"
        own = f"objective={row['objective']} {steps}"
        model = runs.model(arguments.layers, longest=row["seq_length"])
        config = runs.configured(model, data, own, *arguments.set)
        Path(config.output).mkdir()
        train(config)
        every = map(json.loads, Path(config.output, "metrics.jsonl").read_text().splitlines())
        found = [each for each in every if "step_time" in each]  # what a save took is a row too
    return {
        "framework": str(framework_of(config)),
        "step_s": repeated([each["step_time"] for each in found[WARM_UP:]]),
        "losses": [each["loss"] for each in found],
    }
