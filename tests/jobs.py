"""What test processes run: a whole training run, with what the tests want to see of it. Returns numpy only."""

import contextlib
import functools
import gc
import importlib
import io
import json
import logging
import os
import signal
import sys
import time
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch

from nemo_cdt.config import Config, Resharding, load
from nemo_cdt.utils.cpu import cuda_on_cpu
from nemo_cdt.utils.user_errors import reported


def train(config: Config, mutate: str | None = None) -> dict[str, Any]:
    """Trains ``config``; ``mutate`` names a function of :mod:`tests.mutations` that breaks something first."""
    with cuda_on_cpu():
        from nemo_cdt.nemo import assemble
        from nemo_cdt.nemo.callback import ObjectiveCallback

        if mutate:
            from tests import mutations

            getattr(mutations, mutate)()
        Path(config.output).mkdir(parents=True, exist_ok=True)
        trainer, model, data = assemble.build(config, on_gpu=False, resume_from=assemble.resumed(config))
        seen = Seen()
        trainer.callbacks.append(seen)
        for callback in trainer.callbacks:
            if isinstance(callback, ObjectiveCallback):
                callback.observer = functools.partial(seen.detection, trainer)
        trainer.fit(model, data)
        result = {
            "initial": seen.initial,
            "final": _weights(model),
            "detections": seen.detections,
            "losses": seen.losses,
            "metrics": seen.metrics,
            "weight_gradients_after_detection": seen.weight_gradients,
        }
        assemble.tear_down()
        return result


def fit_poisoned(config: Config, step: int, rank: int, mutate: str | None = None) -> dict[str, Any]:
    """:func:`fit` of a run in which a weight of one rank is NaN from a step on: its exit code, and what it says."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    with cuda_on_cpu():
        from nemo_cdt.nemo import assemble

        if mutate:
            from tests import mutations

            getattr(mutations, mutate)()
        right = assemble.build

        def build(*arguments: Any) -> Any:
            trainer, model, data = right(*arguments)
            if int(os.environ["RANK"]) == rank:
                trainer.callbacks.append(Poison(step))
            return trainer, model, data

        assemble.build = build
        assemble.log.addHandler(handler)
        assemble.log.setLevel(logging.INFO)
        code = 0
        Path(config.output).mkdir(parents=True, exist_ok=True)
        try:
            with redirect_stderr(said), reported():
                assemble.fit(config, on_gpu=False)
        except SystemExit as exit:
            code = exit.code
    return {"code": code, "said": said.getvalue()}


class Poison(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step - 1:
            norm = next(p for name, p in pl_module.named_parameters() if "final_layernorm" in name)
            norm.data.fill_(float("nan"))


def train_foreign(config: Config, folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """:func:`train` with the objective that is installed in ``folder``."""
    sys.path.insert(0, str(folder))
    from nemo_cdt.objectives import objective_class, registry

    registry._foreign.cache_clear()  # it may have looked before
    config.objective = objective_class("signed").settings_class(**values)
    return train(config)


def evaluate(config: Config, documents: list[Any]) -> dict[str, float]:
    """What the last validation of ``config`` logged, over ``documents``."""
    with cuda_on_cpu():
        from nemo_cdt.data.rows import Rows
        from nemo_cdt.data.tokenizer import load_tokenizer
        from nemo_cdt.nemo import assemble
        from nemo_cdt.nemo.longppl import judged

        Path(config.output).mkdir(parents=True, exist_ok=True)
        trainer, model, data = assemble.build(config, on_gpu=False)
        apart = replace(config, output=f"{config.output}/judged")  # OUTPUT's own is of the data's own documents
        Path(apart.output).mkdir(exist_ok=True)
        key = judged(apart, load_tokenizer("byte"), documents, on_gpu=False)
        data.held_out = Rows(documents, config.data.seq_length, key)
        trainer.fit(model, data)
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
        assemble.tear_down()
        return found


def said_by_evaluation(config: Config, documents: list[Any]) -> str:
    """What :func:`evaluate` prints on stderr."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        evaluate(config, documents)
    return said.getvalue()


def build_each(files: list[Path]) -> dict[str, tuple]:
    """NeMo's configuration, model and trainer of each run, with no weights yet; what they say of model and layout."""
    found = {}
    with cuda_on_cpu():
        from nemo_cdt.nemo import assemble
        from nemo_cdt.nemo.lora import adapters
        from nemo_cdt.nemo.model import CDTModel, nemo_config, padded
        from nemo_cdt.nemo.sample import SampleWriter

        for config in map(load, files):
            made = nemo_config(config, vocab_size=config.model.vocab_size or padded(262), on_gpu=False)
            lora = adapters(config.lora)
            model = CDTModel(made, optim=assemble._optimizer(config), model_transform=lora)
            trainer = assemble._trainer(config, False, SampleWriter(Path(config.output, "s.json"), None), lora)
            layout = trainer.strategy.parallelism
            sizes = (
                layout.tensor_model_parallel_size,
                layout.pipeline_model_parallel_size,
                layout.virtual_pipeline_model_parallel_size,
                layout.context_parallel_size,
            )
            found[Path(config.output).name] = (model.config.num_layers, model.config.hidden_size, *sizes)
    return found


class Seen(L.Callback):
    def __init__(self) -> None:
        self.initial: dict[str, np.ndarray] = {}
        self.detections: list[dict[str, Any]] = []
        self.losses: list[float] = []
        self.metrics: list[dict[str, float]] = []
        self.weight_gradients: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.initial = self.initial or _weights(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items()})
        self.losses.append(float(trainer.callback_metrics["reduced_train_loss"]))

    def detection(self, trainer: Any, found: Any) -> None:
        """Keeps one record a row: real positions, noise mask and delta, on this rank."""
        if len(self.weight_gradients) == trainer.global_step:  # the step's first micro-batch
            parameters = list(trainer.strategy.megatron_parallel.parameters())
            trained = [p.main_grad for p in parameters if hasattr(p, "main_grad")]
            self.weight_gradients.append(max((float(gradient.abs().max()) for gradient in trained), default=0.0))
            assert all(p.grad is None for p in parameters)
        from megatron.core import parallel_state

        share = {k: found.share(found.batch[k].t()).numpy() for k in ("position_ids", "documents", "tokens")}
        micro_batch = sum(d["step"] == trainer.global_step for d in self.detections) // found.noise_SB.shape[1]
        size, rows = trainer.strategy.data_sampler.micro_batch_size, share["tokens"].shape[1]
        first = (
            micro_batch * parallel_state.get_data_parallel_world_size() + parallel_state.get_data_parallel_rank()
        ) * size
        for row in range(rows):
            real = share["documents"][:, row] >= 0
            self.detections.append(
                {
                    "step": trainer.global_step,
                    "positions": share["position_ids"][real, row],
                    "documents": share["documents"][real, row],
                    "tokens": share["tokens"][real, row],
                    "noise": found.noise_SB.numpy()[real, row],
                    "score": found.score_SB.numpy()[real, row],
                    "delta": found.shift_SBH.float().numpy()[real, row],
                    "threshold": found.threshold_N.view(rows, -1)[row].numpy(),
                    "row": first + row,
                }
            )


def _weights(model: Any) -> dict[str, np.ndarray]:
    module = model.module
    while hasattr(module, "module"):
        module = module.module
    return {k: v.detach().float().numpy().copy() for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}


def initial(model: Any, vocabulary: int, hf: Path, nemo: Path) -> None:
    """Random weights, as a Hugging Face folder and as a NeMo checkpoint."""
    from tests.llama import random_hugging_face

    random_hugging_face(model, vocabulary).save_pretrained(hf)
    with cuda_on_cpu():
        from nemo_cdt.nemo.convert import convert

        convert(hf, nemo)


def train_file(file: Path) -> None:
    """``python -m nemo_cdt.training FILE``"""
    from nemo_cdt import training

    sys.argv = ["train", str(file)]
    training.main()


def train_on_a_slow_disk(file: Path, held: Path) -> None:
    """:func:`train_file`, whose checkpoints are not written while ``held`` is there."""
    with cuda_on_cpu():
        from nemo_cdt.checkpoint import checksums
    write = checksums._Summing.write

    def written(file: Any, data: Any) -> int:
        while held.exists():
            time.sleep(0.01)
        return write(file, data)

    checksums._Summing.write = written
    train_file(file)


def launch(file: Path, environment: dict[str, str], train: str) -> None:
    """What the recipe does with a valid configuration; ``train`` is the module that its processes run."""
    from nemo_cdt.launch import launch
    from nemo_cdt.launch.local import run as local

    os.environ |= environment
    local.TRAIN = train
    launch(load(file))


def converted(source: Path, destination: Path) -> None:
    with cuda_on_cpu():
        from nemo_cdt.nemo.convert import convert

        convert(source, destination)


def convert_and_count(source: Path, destination: Path) -> list[str]:
    """Which files were read back for their checksums."""
    with cuda_on_cpu():
        from nemo_cdt.checkpoint import checksums

    read_back, right = [], checksums.sum_of

    def sum_of(file: Path) -> tuple[int, str]:
        read_back.append(file.name)
        return right(file)

    checksums.sum_of = sum_of
    converted(source, destination)
    return read_back


def fuzz_checkpoint(checkpoint: Path, name: str, count: int) -> dict[str, int]:
    """Reads it, as convert does, with each of ``count`` mutations of one of its files."""
    with cuda_on_cpu():
        from nemo_cdt.checkpoint import megatron_checkpoint
        from nemo_cdt.checkpoint.verification import verify
    from tests.fuzzing import both, mutations, outcomes, watched

    file = checkpoint / name
    whole = file.read_bytes()

    def read() -> None:
        verify(checkpoint, sums=name == "checksums.json")
        dict(megatron_checkpoint.read_weights(checkpoint, megatron_checkpoint.read_model(checkpoint)))

    read()  # what it imports is no finding
    damaged = both(json.loads(whole), count) if name.endswith(".json") else mutations(whole, count)
    try:
        with watched(checkpoint):
            return dict(outcomes(damaged, file.write_bytes, read, str(checkpoint)))
    finally:
        file.write_bytes(whole)


def newest(folder: Path) -> dict[str, str]:
    """The checkpoint that a resumed run would take, and what is said of the others."""
    with cuda_on_cpu():
        from nemo_cdt.checkpoint import verification
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    verification.log.addHandler(handler)
    found = verification.newest_whole(folder)
    verification.log.removeHandler(handler)
    return {"checkpoint": found.name if found else "", "said": said.getvalue()}


def train_and_read(config: Config, mutate: str | None = None) -> dict[str, Any]:
    """:func:`train`, and on rank 0 also every tensor of the checkpoint that it ends with, whole: Adam's too."""
    config.trainer.checkpoint_resharding = Resharding.full  # the same tensors under any layout
    result = train(config, mutate)
    del result["initial"], result["final"]
    if os.environ["RANK"] == "0":
        from nemo_cdt.checkpoint.steps import latest_checkpoint

        result["state"] = tensors(latest_checkpoint(Path(config.output, "checkpoints")))
    return result


def train_each(*configs: Config) -> dict[str, Any]:
    """What the last one of :func:`train_all` saw."""
    return train_all(*configs)[-1]


def train_all(*configs: Config) -> list[dict[str, Any]]:
    """:func:`train`, one after another in this process: each leaves NeMo's state as it found it."""
    results = []
    for config in configs:
        before = _app_state()
        results.append(train(config))
        assert _app_state() == before
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)  # that of before knows the ranks of before
    return results


def verb(*arguments: str) -> None:
    """``nemo-cdt ...``"""
    from nemo_cdt.cli import main

    sys.exit(main(arguments))


def prepare(arguments: list[str], die_at: int | None = None, first: bool = False) -> None:
    """``nemo-cdt prepare ...`` with tasks of a few rows; dies just before its ``die_at``-th file takes its name, or
    just after that with ``first``."""
    from nemo_cdt.prepare import work

    work.TASK_ROWS = 15
    right, made = Path.replace, 0

    def replace(path: Path, target: Path) -> Path:
        nonlocal made
        made += 1
        done = right(path, target) if first or made != die_at else target
        if made == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    Path.replace = replace  # type: ignore[method-assign, assignment]
    verb("prepare", *arguments)


def book_samples(prefix: str, seq_length: int, samples: int, index: str) -> list[np.ndarray]:
    """Tokens of each sample that NeMo's data module makes of documents."""
    with cuda_on_cpu():
        from nemo.collections.common.tokenizers import AutoTokenizer

        from nemo_cdt.nemo.pretraining import BookDataModule

        data = BookDataModule(
            prefix, tokenizer=AutoTokenizer(index, use_fast=True), index=index, seq_length=seq_length,
            micro_batch_size=1, global_batch_size=1, seed=1, num_workers=0,
        )  # fmt: skip
        data.build(samples, 1, 0, 0)
        return [data._train_ds[number]["tokens"] for number in range(samples)]


def benchmark(name: str, arguments: Any) -> list[dict[str, Any]]:
    """Every row of a benchmark."""
    return list(importlib.import_module(f"benchmarks.{name}").rows(arguments))


def fit(*configs: Config) -> None:
    """What a start of the recipe does with each: trains, saves and exports, one after another in this process."""
    with cuda_on_cpu():
        from nemo_cdt.nemo import assemble

        for config in configs:
            Path(config.output).mkdir(parents=True, exist_ok=True)
            assemble.fit(config, on_gpu=False)
            os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)


def bytes_left(overrides: list[str]) -> tuple[int, int, int]:
    """Of all tensors of a run at its end, when it has ended, and when the same run by the recipe has ended."""
    from benchmarks import runs

    def alive() -> int:
        tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
        return sum({s.data_ptr(): s.nbytes() for s in (each.untyped_storage() for each in tensors)}.values())

    def watch(trainer: Any, model: Any) -> None:
        from lightning.pytorch.callbacks import LambdaCallback

        trainer.callbacks.append(LambdaCallback(on_train_end=lambda *_: found.append(alive())))

    found: list[int] = []
    runs.fit(runs.composed(overrides), watch)
    after = alive()
    fit(runs.composed(overrides))
    return found[0], after, alive()


def layouts(folder: Path, length: int, only: str) -> None:
    from benchmarks.layouts import work

    work(folder, [length], only)


def _app_state() -> dict[str, Any]:
    with cuda_on_cpu():
        from nemo.utils import AppState
    return {name: value for name, value in vars(AppState()).items() if not name.endswith("lock")}


def tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every tensor in it, whole: weights, and the optimizer's."""
    import torch.distributed.checkpoint as dcp

    reader = dcp.FileSystemReader(checkpoint / "weights")
    entries = reader.read_metadata().state_dict_metadata
    found = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, dcp.metadata.TensorStorageMetadata)
    }
    dcp.load(found, storage_reader=reader, no_dist=True)
    return {name: tensor.float().numpy() for name, tensor in found.items()}
