"""``trainer.profile=true``: where the time of one step goes, by torch's profiler, in OUTPUT/profile.

NeMo's own profiler callback writes traces and no table; Lightning's tables know nothing of the two passes.
"""

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent, Interval
from torch.profiler import profile, record_function, schedule

from nemo_cdt.config import PROFILED_STEP
from nemo_cdt.megatron.marks import DENOISING, DETECTION, WINDOWS
from nemo_cdt.utils.atomic_write import atomic_write, new_file

logger = logging.getLogger("nemo_cdt")

OPTIMIZER, TRAINING, COMMUNICATION = "optimizer", "training", "communication"
MARKS = (WINDOWS, DETECTION, DENOISING, OPTIMIZER)
PHASES = (
    WINDOWS,
    f"{DETECTION}, forward",
    f"{DETECTION}, backward",
    DENOISING,
    f"{TRAINING}, forward",
    f"{TRAINING}, backward",
    OPTIMIZER,
    COMMUNICATION,
)
"""Training's forward is also what no mark is around: data, logging."""
TOP, WIDTH = 20, 70


class Profile(L.Callback):
    """Traces the :data:`PROFILED_STEP`-th step of this attempt; of each rank a Chrome trace, a table, and that as JSON.

    Last of the callbacks that log, so that a step ends with what they do.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._step = 0  # that is traced, counted as in metrics.jsonl
        self._profile: profile | None = None
        self._optimizer: record_function | None = None

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._step = trainer.global_step + PROFILED_STEP
        if trainer.max_steps < self._step:
            left = trainer.max_steps - trainer.global_step
            logger.warning(
                f"trainer.profile=true traces the {PROFILED_STEP}th step of an attempt, and {left} steps are left of "
                "this one: nothing is traced"
            )
            return
        self._profile = profile(
            schedule=schedule(wait=PROFILED_STEP - 2, warmup=1, active=1, repeat=1), on_trace_ready=self._write
        )
        self._profile.start()

    def on_before_optimizer_step(self, *_: Any) -> None:
        if self._profile is not None:
            self._optimizer = record_function(OPTIMIZER)
            self._optimizer.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._profile is not None and self._optimizer is not None:
            torch.cuda.synchronize()  # what the step gave the device is the step's
            self._optimizer.__exit__(None, None, None)
            self._profile.step()
            if trainer.global_step == self._step:
                self._end()

    def on_exception(self, *_: Any) -> None:
        if self._profile is not None:
            self._profile.on_trace_ready = None  # a part of a step is no step
            self._end()

    def _end(self) -> None:
        assert self._profile is not None
        self._profile.stop()
        self._profile = None

    def _write(self, profiled: profile) -> None:
        self.folder.mkdir(exist_ok=True)
        name = f"step={self._step}-rank={torch.distributed.get_rank()}"
        found = times(list(profiled.events()), on_gpu=torch.cuda.is_available())
        with new_file(self.folder / f"{name}.trace.json.gz") as partial:
            profiled.export_chrome_trace(str(partial))
        atomic_write(self.folder / f"{name}.json", json.dumps(found, indent=1))
        atomic_write(self.folder / f"{name}.txt", table(found))
        if not found["top"]:
            logger.warning(
                "trainer.profile=true saw no kernel: another profiler is attached, or CUPTI is not permitted"
            )
        phases = table(found).split("\n\n")[0]
        logger.info(f"Where the time of step {self._step} went; more in {self.folder}/{name}.txt\n{phases}")


def times(events: list[FunctionEvent], *, on_gpu: bool) -> dict[str, Any]:
    """Of one traced step: ``wall_s``, the seconds of each phase, and the kernels, or a CPU's operators, that took most.

    Communication is told by name, wherever it is called: it may run beside the phases. What no phase has of the wall
    time is the device's idle time; on a CPU, Python's.
    """
    spans = {mark: [e.time_range for e in events if e.name == mark and _is_host(e)] for mark in MARKS}
    wall = sum(e.time_range.elapsed_us() for e in events if e.name == "ProfilerStep*" and _is_host(e))
    phases = dict.fromkeys(PHASES, 0.0)
    calls: dict[str, list[float]] = defaultdict(list)
    for event, name, microseconds in _spent(events, on_gpu):
        phases[_phase(event, name, spans)] += microseconds / 1e6
        calls[name].append(microseconds / 1e6)
    most = sorted(calls, key=lambda name: -sum(calls[name]))[:TOP]
    return {
        "time_of": "kernels" if on_gpu else "operators",
        "wall_s": wall / 1e6,
        "phases_s": phases | {"none of these": max(0.0, wall / 1e6 - sum(phases.values()))},
        "top": [{"name": name, "s": sum(calls[name]), "calls": len(calls[name])} for name in most],
    }


def _spent(events: list[FunctionEvent], on_gpu: bool) -> Iterator[tuple[FunctionEvent, str, float]]:
    """Every kernel with the host's event that launched it; without a GPU, every operator less those it called."""
    marks = {event.name for event in events if event.is_user_annotation}
    for event in filter(_is_host, events):
        if on_gpu:
            yield from ((event, kernel.name, kernel.duration) for kernel in event.kernels if kernel.name not in marks)
        elif event.name not in marks:
            yield event, event.name, event.self_cpu_time_total


def _phase(event: FunctionEvent, name: str, spans: dict[str, list[Interval]]) -> str:
    if re.match("nccl|gloo|c10d", name):
        return COMMUNICATION
    # By the time of the launch: a GPU's backward pass launches from a thread of its own, under none of the marks.
    at = event.time_range.start
    inside = {mark for mark, ranges in spans.items() if any(span.start <= at <= span.end for span in ranges)}
    for mark in (WINDOWS, DENOISING, OPTIMIZER):
        if mark in inside:
            return mark
    return f"{DETECTION if DETECTION in inside else TRAINING}, {'backward' if _in_backward(event) else 'forward'}"


def _in_backward(event: FunctionEvent | None) -> bool:
    while event is not None and not event.name.startswith("autograd::engine::evaluate_function"):
        event = event.cpu_parent
    return event is not None


def _is_host(event: FunctionEvent) -> bool:
    return event.device_type == DeviceType.CPU


def table(found: dict[str, Any]) -> str:
    """For people: seconds, and their share of the wall time."""
    wall = found["wall_s"]
    phases = [("the step", wall, ""), *((name, seconds, "") for name, seconds in found["phases_s"].items())]
    top = [(row["name"][:WIDTH], row["s"], f"{row['calls']} calls") for row in found["top"]]
    lines = [f"{name:{WIDTH}} {s:10.4f} s {100 * s / wall:6.1f} %  {calls}".rstrip() for name, s, calls in phases + top]
    return "\n".join([*lines[: len(phases)], "", f"{found['time_of']} that took most:", *lines[len(phases) :], ""])
