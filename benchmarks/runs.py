"""Runs of the recipe, composed from ``conf/`` as its command line does, trained in this process and not saved."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measured import ROOT, Row, attempted, on_gpu, shape
from nemo_cdt.config import Config
from nemo_cdt.config.compose import compose
from nemo_cdt.utils.user_errors import fail
from nemo_cdt.validation import validate

DEVICE = (
    "trainer.precision=bf16 trainer.accelerator=gpu" if on_gpu() else "trainer.precision=fp32 trainer.accelerator=cpu"
)
COMMON = """
    name=benchmark compare_to=null report=false export.hf=null optim=constant optim.lr=1e-5 optim.min_lr=1e-6
    optim.warmup_steps=0 trainer.global_batch_size=1 trainer.val_interval=0 trainer.checkpoint_interval=0
"""
OWN = ".benchmark"
"""The file that says so of a folder that a benchmark has made."""
FEW = 16
"""Labels of a row where few tokens are labelled: an answer."""


def devices() -> AbstractContextManager:
    if on_gpu():
        return nullcontext()
    from nemo_cdt.utils.cpu import cuda_on_cpu

    return cuda_on_cpu()


def words(*overrides: str) -> list[str]:
    """``overrides``, of which one string may hold several, over those of every benchmark."""
    return " ".join([COMMON, DEVICE, *overrides]).split()


def configured(*overrides: str) -> Config:
    """The run that ``recipes/cdt_llama31.py`` makes of these :func:`words`, validated."""
    return composed(words(*overrides))


def composed(overrides: list[str]) -> Config:
    """The same of these overrides and no others.

    Raises:
        ValueError: for one that is none.
    """
    config = compose(overrides)
    validate(config)
    return config


def model(num_layers: int | None, longest: int = 0) -> str:
    """The model that is measured, as overrides, with positions up to ``longest``."""
    m = shape(num_layers)
    return (
        f"model={m.name} model.num_layers={m.num_layers} model.vocab_size={m.vocab_size} "
        f"model.max_positions={max(longest, 131072)}"
    )


@contextmanager
def folder() -> Iterator[Path]:
    """Where a run leaves its files, for as long as it lasts."""
    with tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as path:
        yield Path(path)


def own(folder: Path) -> None:
    """Makes ``folder`` a benchmark's own, in which it may remove what an attempt that did not end has left.

    Ends the process where it holds what no benchmark has made.
    """
    if folder.exists() and not (folder / OWN).exists() and any(folder.iterdir()):
        fail(f"{folder} is no folder of a benchmark's (it has no {OWN}): move it away, or set another --out")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OWN).touch()


def write_rows(path: Path, *, seq_length: int, labels: str) -> str:
    """Two documents of random tokens, a row each, as overrides of ``data``. labels: ``all``, or ``few`` at the end."""
    with path.open("w") as file:
        for seed in range(2):
            ids = np.random.default_rng(seed).integers(0, shape(None).vocab_size, seq_length + 1)
            given = ids.copy()
            if labels == "few":
                given[:-FEW] = -100
            file.write(json.dumps({"input_ids": ids.tolist(), "labels": given.tolist()}) + "\n")
    return f"data=jsonl data.path={path} data.seq_length={seq_length}"


def fit(config: Config, change: Callable[[Any, Any], None] = lambda trainer, model: None) -> list[Row]:
    """Trains ``config``; of every step its ``seconds``, ``peak_memory_gib`` and logged metrics.

    change: gets the trainer and the model before training starts. The process can train another run afterwards, even
    where this one raised, and finds the memory free.
    """
    with devices():
        from nemo_cdt.nemo import assemble

        try:
            return _fit(config, change)
        finally:
            assemble.release()


def _fit(config: Config, change: Callable[[Any, Any], None]) -> list[Row]:
    from lightning.pytorch.callbacks import ModelCheckpoint

    from benchmarks.callbacks import Steps
    from nemo_cdt.nemo import assemble
    from nemo_cdt.nemo.progress import Progress
    from nemo_cdt.nemo.sample import SampleWriter

    steps = Steps()
    unwanted = (ModelCheckpoint, SampleWriter, Progress)
    try:
        Path(config.output).mkdir(parents=True, exist_ok=True)
        trainer, model, data = assemble.build(config, on_gpu())
        trainer.callbacks = [steps, *(x for x in trainer.callbacks if not isinstance(x, unwanted)), steps.after]
        change(trainer, model)
        trainer.fit(model, data)
    finally:
        assemble.tear_down()
    return steps.rows


def observed_by(observer: Callable[[Any], None]) -> Callable[[Any, Any], None]:
    """The change for :func:`fit` after which ``observer`` gets what each detection finds."""

    def change(trainer: Any, model: Any) -> None:
        from nemo_cdt.nemo.callback import ObjectiveCallback

        next(each for each in trainer.callbacks if isinstance(each, ObjectiveCallback)).observer = observer

    return change


def fit_on(devices: int, overrides: list[str], folder: Path) -> list[list[Row]]:
    """What :func:`fit` finds of :func:`composed` overrides on each of so many ranks, processes of their own.

    Raises:
        RuntimeError: what a rank died of, its memory used up or another reason.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(devices)]
    code = subprocess.run([*command, "-m", "benchmarks.runs", str(folder), *overrides], cwd=ROOT).returncode
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("rank-*.json"))]
    for each in found:
        if "error" in each:
            raise RuntimeError(each["error"])
    if code or len(found) < devices:
        raise RuntimeError(f"{devices} ranks ended with exit code {code}, {len(found)} of them with a result")
    return [each["steps"] for each in found]


def _rank(folder: Path, overrides: list[str]) -> int:
    found = attempted(lambda: {"steps": fit(composed(overrides))})
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))
    return int("error" in found)  # torchrun ends the others, which may wait for this one


if __name__ == "__main__":
    from nemo_cdt import console

    console.set_up()
    sys.exit(_rank(Path(sys.argv[1]), sys.argv[2:]))
