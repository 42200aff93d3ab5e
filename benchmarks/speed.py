"""A CDT step beside a plain step of the same recipe, weights, memory and clocks: every other step is a plain one.

A row is a length and what is computed again in backward passes. ``floor`` is the least that the ratio can be by FLOPs
(:mod:`nemo_cdt.cost.flops`); ``delta_s`` is what CDT adds to its two passes: scores, threshold, mask and shift.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import runs
from benchmarks.ceilings import mfu, peak
from benchmarks.measured import Row, attempted, on_gpu, repeated
from nemo_cdt.config import Config, Recompute
from nemo_cdt.cost import flops

LENGTHS = (8192, 32768, 65536, 131072) if on_gpu() else (256,)
RECOMPUTE = [("none", "none"), ("full", "full"), ("full", "none")]
"""In training and in detection."""


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    ceiling = peak()
    yield {"ceiling_tflops": ceiling}
    for length in arguments.lengths or LENGTHS:
        for training, detection in _asked(arguments.only):
            row = {"seq_length": length, "recompute": training, "detection_recompute": detection}
            yield row | attempted(compared, row, arguments, ceiling)


def _asked(only: str | None) -> list[tuple[str, str]]:
    if only is None:
        return RECOMPUTE
    training, _, detection = only.partition(",")
    if (training, detection) not in RECOMPUTE:
        raise ValueError(f"--only {only}: speed has {' '.join(map(','.join, RECOMPUTE))}")
    return [(training, detection)]


def compared(row: Row, arguments: argparse.Namespace, ceiling: float) -> Row:
    length = row["seq_length"]
    with runs.folder() as folder:
        config = _configured(folder, row, arguments)
        figures = _alternated(config, arguments.deadline)
    if "error" in figures:
        return figures
    seconds = {kind: figures[f"{kind}_s"]["median"] for kind in ("plain", "cdt")}
    labelled = runs.FEW / length if arguments.labels == "few" else 1.0
    least = floor(config, row, labelled)
    figures |= {
        "ratio": seconds["cdt"] / seconds["plain"],
        "floor": least,
        "over_floor": seconds["cdt"] / seconds["plain"] / least - 1,
    }
    for kind, each in seconds.items():
        figures[f"{kind}_tokens_per_s"] = length / each
        figures[f"{kind}_mfu"] = mfu(config.model, length, each, kind, labelled, ceiling)
    return figures


def floor(config: Config, row: Row, labelled: float) -> float:
    """By FLOPs, with the head at ``labelled`` of the tokens and its logits computed once."""
    training, detection = (
        flops.work(config.model, row["seq_length"], Recompute(row[name]), frozen=frozen, labelled=labelled)
        for name, frozen in (("recompute", False), ("detection_recompute", True))
    )
    return flops.floor(training, detection)


def _configured(folder: Path, row: Row, arguments: argparse.Namespace) -> Config:
    model, length = runs.model(arguments.layers, longest=row["seq_length"]), row["seq_length"]
    data = runs.write_rows(folder / "rows.jsonl", seq_length=length, labels=arguments.labels)
    own = f"objective.detection_recompute={row['detection_recompute']}"
    steps = 2 * (arguments.repetitions + 2)  # a pair to warm up, and one to count synchronisations
    settings = f"output={folder}/run trainer.max_steps={steps} trainer.recompute={row['recompute']}"
    # A worker reads ahead, so that no step waits for JSON.
    return runs.configured(model, data, own, settings, "data.num_workers=1", *arguments.set)


def _alternated(config: Config, deadline: float) -> Row:
    """Both kinds of step; without those that warm up or count synchronisations."""
    installed: list[Any] = []

    def install(trainer: Any, model: Any) -> None:
        from benchmarks.callbacks import Alternating
        from nemo_cdt.nemo.callback import ObjectiveCallback

        place = next(i for i, x in enumerate(trainer.callbacks) if isinstance(x, ObjectiveCallback))
        like, steps = trainer.callbacks[place], config.trainer.max_steps
        trainer.callbacks[place] = Alternating(
            like.objective, like.observer, like.recompute, like.fp8, steps=steps, deadline=deadline
        )
        installed.append(trainer.callbacks[place])

    steps = runs.fit(config, install)
    alternating = installed[0]
    timed = list(zip(alternating.kinds[2:-2], steps[2:], strict=False))
    if len(timed) < 2:
        return {"error": "no time was left for a repetition", "out_of_memory": False}
    of = {kind: [step for own, step in timed if own == kind] for kind in ("plain", "cdt")}
    found: Row = {f"{kind}_s": repeated([step["seconds"] for step in of[kind]]) for kind in of}
    found |= {
        "detection_s": repeated([step["detection_time"] for step in of["cdt"]]),
        "delta_s": repeated(alternating.delta_seconds()[1 : 1 + len(of["cdt"])]),
    }
    for kind in of:
        found[f"{kind}_peak_gib"] = of[kind][-1]["peak_memory_gib"]
        lines = alternating.synchronisations.get(kind)
        found[f"{kind}_synchronisations"] = None if lines is None else sum(lines.values())
        found[f"{kind}_synchronises_at"] = lines
    return found
