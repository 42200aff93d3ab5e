"""Puts a run together from NeMo's parts: model, optimizer, strategy, logger, resumption, trainer."""

import gc
import logging as python_logging
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import psutil
import torch
from filelock import FileLock
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
from megatron.core.optimizer import OptimizerConfig
from megatron.core.rerun_state_machine import destroy_rerun_state_machine
from nemo import lightning as nl
from nemo.collections.common.tokenizers import AutoTokenizer
from nemo.lightning.callback_group import CallbackGroup
from nemo.lightning.pytorch.optim import CosineAnnealingScheduler, MegatronOptimizerModule, WarmupPolicyScheduler
from nemo.lightning.resume import AdapterPath
from nemo.utils import AppState, logging

from nemo_cdt.checkpoint.exported import ExportError, replacing
from nemo_cdt.checkpoint.steps import latest_checkpoint, step_of, steps_done
from nemo_cdt.checkpoint.verification import newest_whole
from nemo_cdt.config import (
    FP8,
    Config,
    DataName,
    Optim,
    Precision,
    Recompute,
    Resharding,
    Schedule,
)
from nemo_cdt.console import is_first_rank
from nemo_cdt.cost.memory import detection_recompute
from nemo_cdt.data.tokenizer import load_tokenizer
from nemo_cdt.megatron.settings import of_optimizer
from nemo_cdt.nemo import resharding
from nemo_cdt.nemo.callback import ObjectiveCallback, StepMetrics, Truncation
from nemo_cdt.nemo.checkpoints import initial_checkpoint
from nemo_cdt.nemo.convert import convert
from nemo_cdt.nemo.data import RowDataModule, data_module
from nemo_cdt.nemo.evaluation import ValidationMetrics
from nemo_cdt.nemo.loggers import close, loggers
from nemo_cdt.nemo.longppl import judged
from nemo_cdt.nemo.lora import Adapters, adapters
from nemo_cdt.nemo.metrics import JsonLinesLogger
from nemo_cdt.nemo.model import CDTModel, nemo_config, padded
from nemo_cdt.nemo.pretraining import BookDataModule
from nemo_cdt.nemo.profile import Profile
from nemo_cdt.nemo.progress import Progress
from nemo_cdt.nemo.rehearsal import rehearse
from nemo_cdt.nemo.sample import SampleWriter
from nemo_cdt.nemo.saving import Checkpoints, TrainingLoop
from nemo_cdt.nemo.strategy import SynchronizedPrecision, SynchronizedStrategy
from nemo_cdt.objectives import objective_of
from nemo_cdt.objectives.cdt.settings import DetectionRecompute, detection_settings
from nemo_cdt.utils.atomic_write import new_folder
from nemo_cdt.utils.reading import blamed_on
from nemo_cdt.utils.user_errors import TrainingFailedError
from nemo_cdt.validation import record_data
from nemo_cdt.versions import write_versions

log = python_logging.getLogger(__name__)


def fit(config: Config, on_gpu: bool) -> None:
    """Trains to ``trainer.max_steps``, then exports, and leaves the process as it was found: another run can follow.

    Raises:
        SystemExit: with 143, after saving, where SIGTERM asked for it (as Slurm does before it takes the machine away);
            with 130, as it stands, on Ctrl-C.
    """
    checkpoints, resume_from = Path(config.output, "checkpoints"), resumed(config)
    if resume_from and (done := step_of(resume_from)) >= config.trainer.max_steps:
        log.info(f"nothing to train: {checkpoints} has {done} steps, trainer.max_steps={config.trainer.max_steps}")
    else:
        try:
            _train(config, on_gpu, resume_from)
        finally:
            release()
    if config.export.hf and is_first_rank():
        _export(config, checkpoints)


def resumed(config: Config) -> Path | None:
    """The checkpoint that the run goes on from: the newest that is whole. Call it on all ranks."""
    if not config.resume:
        return None
    folder = Path(config.output, "checkpoints")
    found = newest_whole(folder, sums=config.trainer.verify_checkpoints)
    if not found:
        log.info(f"nothing to resume in {folder}: this run starts from step 0")
    else:
        resharding.require_loadable(found, config)
        log.info(f"this run goes on from step {step_of(found)}, {found}")
    return found


def _train(config: Config, on_gpu: bool, resume_from: Path | None) -> None:
    try:
        trainer, model, data = build(config, on_gpu, resume_from)
        trainer.fit(model, data)
    except SIGTERMException:
        log.warning(f"stopped by SIGTERM with {trainer.global_step} steps saved: resume=true goes on from there")
        raise SystemExit(128 + signal.SIGTERM) from None
    except TrainingFailedError as error:
        raise TrainingFailedError(f"{error}. {_whole(Path(config.output, 'checkpoints'))}") from None
    except SystemExit:  # what Lightning makes of Ctrl-C
        saved = steps_done(Path(config.output, "checkpoints"))
        log.warning(f"interrupted, {saved} steps saved: resume=true {'goes on from there' if saved else 'starts anew'}")
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        close(failed=sys.exc_info()[0] is not None)
        tear_down()


def _whole(checkpoints: Path) -> str:
    """What is left of a run that failed."""
    saved = steps_done(checkpoints)
    left = (
        f"{checkpoints}/step={saved} is the last checkpoint before it" if saved else "no checkpoint was saved before it"
    )
    return f"{left}: look at grad_norm in metrics.jsonl, and set a lower optim.lr, or optim.warmup_steps"


def _export(config: Config, checkpoints: Path) -> None:
    """Raises ValueError or OSError, with what is safe and how to go on, where the model cannot be put there."""
    checkpoint, folder = latest_checkpoint(checkpoints), Path(config.export.hf or "")
    assert checkpoint is not None
    by_hand = f"training is done and its checkpoint is safe: `nemo-cdt convert {checkpoint} DIR` exports it"
    try:
        with replacing(folder, Path(config.output)) as new:
            convert(checkpoint, new, sums=False)  # it was compared, or written, just now
        log.info(f"exported to {folder}, for transformers.AutoModelForCausalLM")
    except ExportError as error:
        raise ValueError(f"export.hf={error}; {by_hand}") from error
    except OSError as error:  # stays one: on a cluster the next attempt may find the file system well
        raise OSError(f"export.hf={folder} could not be written, {error.strerror or error}; {by_hand}") from error


def build(
    config: Config, on_gpu: bool, resume_from: Path | None = None
) -> tuple[nl.Trainer, CDTModel, RowDataModule | BookDataModule]:
    """Everything ``trainer.fit`` needs, connected to OUTPUT. ``resume_from``: see :func:`resumed`."""
    output = Path(config.output)
    # NeMo's telemetry, which only its own `llm.train` configures: under torchrun rank 0 would raise at the first save.
    CallbackGroup.get_instance().callbacks.clear()
    logging.setLevel(logging.WARNING)
    L.seed_everything(config.trainer.seed, workers=True, verbose=False)
    done = step_of(resume_from) if resume_from else 0
    chosen = loggers(config, done)  # first, as a server may not answer
    start_from, vocab_size = initial_checkpoint(config)
    tokenizer = load_tokenizer(config.tokenizer)
    model_config = nemo_config(config, vocab_size=vocab_size or padded(len(tokenizer)), on_gpu=on_gpu)
    with FileLock(output / ".tokenizer.lock"):  # one rank writes, the others wait and find it whole
        if not (output / "tokenizer").exists():
            with new_folder(output / "tokenizer") as folder:
                tokenizer.save_pretrained(folder, save_jinja_files=not isinstance(tokenizer.chat_template, dict))
                given = Path(config.init.hf or "", "generation_config.json")
                if config.init.hf and given.is_file():  # travels with the tokenizer, to checkpoints and exports
                    shutil.copyfile(given, folder / given.name)
    with blamed_on(output / "tokenizer", "it is no whole tokenizer: remove it, and the run writes it again", True):
        nemo_tokenizer = AutoTokenizer(str(output / "tokenizer"), use_fast=True)
    data = data_module(config, nemo_tokenizer, model_config.vocab_size)
    data.held_out.key = judged(config, tokenizer, data.held_out.documents, on_gpu)
    lora = adapters(config.lora)
    model = CDTModel(
        model_config,
        optim=_optimizer(config),
        tokenizer=nemo_tokenizer,
        model_transform=lora,
    )
    if is_first_rank():
        rehearse(config, model)
    trainer = _trainer(config, on_gpu, SampleWriter(output / "sample.json", tokenizer), lora)
    logged = _logger(config, output, done, chosen).setup(trainer, resume_if_exists=True)
    logged.files_to_move = []  # NeMo would move the files of OUTPUT, config.yaml and metrics.jsonl too, into run_0
    nl.AutoResume(
        resume_from_path=str(resume_from) if resume_from else None,
        restore_config=nl.RestoreConfig(path=str(start_from), load_artifacts=False) if start_from else None,
    ).setup(trainer, model)
    if lora and resume_from:  # NeMo would look for the base where it was when the adapters were saved
        trainer.ckpt_path = AdapterPath(resume_from / "weights", base_model_path=start_from)
    if trainer.is_global_zero:
        write_versions(output / "versions.json")
        record_data(config)
    return trainer, model, data


def tear_down() -> None:
    """Forgets the process-wide state of NeMo, Megatron and torch.distributed."""
    vars(AppState()).clear()  # a singleton: it can be emptied, but not replaced
    AppState.__init__(AppState())
    parallel_state.destroy_model_parallel()
    destroy_num_microbatches_calculator()
    destroy_rerun_state_machine()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def release() -> None:
    """Frees the memory of a run whose trainer and model are no local names any more: they hold each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _trainer(config: Config, on_gpu: bool, sample: SampleWriter, lora: Adapters | None) -> nl.Trainer:
    settings, validates = config.trainer, config.trainer.val_interval > 0
    packed = config.data.pack or config.data.name is DataName.preferences
    objective, typed, fp8 = objective_of(config), config.data.name is DataName.multihop, settings.fp8 is FP8.detection
    recompute = _detection_recompute(config, on_gpu) if objective.detects or (validates and typed) else None
    callbacks: list[L.Callback] = [
        ObjectiveCallback(objective, sample.observe if objective.detects else None, recompute, fp8, config.deals),
        *([sample] if objective.detects else []),
        StepMetrics(packed=packed, before=[one.metric for one in objective.PASSES]),
    ]
    if validates:
        scope = detection_settings(config.objective).threshold_scope
        callbacks.append(ValidationMetrics(typed=typed, scope=scope, recompute=recompute, fp8=fp8))
    if lora:
        callbacks.insert(0, lora)
    trainer = nl.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        max_steps=settings.max_steps,
        val_check_interval=settings.val_interval if validates else None,
        check_val_every_n_epoch=None if validates else 1,  # None: the interval counts a run's steps, resumed or not
        limit_val_batches=_validation_micro_batches(config) if validates else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        enable_model_summary=False,
        logger=False,  # NeMo's takes its place; Lightning would make one of its own
        inference_mode=False,  # RoPE's cached angles would be of it, and validation detects with gradients
        strategy=_strategy(config, on_gpu),
        plugins=SynchronizedPrecision(
            "bf16-mixed" if settings.precision is Precision.bf16 else "32",
            grad_reduce_in_fp32=settings.grad_dtype is Precision.fp32,
            all_in_fp8=settings.fp8 is FP8.both,
        ),
        callbacks=Progress(),
    )
    # NeMo writes what its trainer is made of into each checkpoint, and these hold more than can be written.
    trainer.callbacks[:0] = [*callbacks, Truncation(), *_profile(config), *_heartbeats(config)]
    trainer.fit_loop.epoch_loop = TrainingLoop(trainer, trainer.min_steps, trainer.max_steps)
    return trainer


def _detection_recompute(config: Config, on_gpu: bool) -> Recompute:
    """What detection's backward computes again. Says so where ``auto`` had a choice."""
    device = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory if on_gpu else None
    chosen, why = detection_recompute(config, device or psutil.virtual_memory().total / config.trainer.devices)
    if (
        detection_settings(config.objective).detection_recompute is DetectionRecompute.auto
        and config.trainer.recompute is not Recompute.none
    ):
        log.info(why)
    return chosen


def _profile(config: Config) -> list[L.Callback]:
    return [Profile(Path(config.output, "profile"))] if config.trainer.profile else []


def _heartbeats(config: Config) -> list[L.Callback]:
    """Where nvidia-resiliency-ext's launcher watches this rank, it must hear from it."""
    if "FT_RANK_MONITOR_IPC_SOCKET" not in os.environ:
        return []
    from nemo_cdt.nemo.heartbeats import Heartbeats

    return [Heartbeats(autoresume=False, calculate_timeouts=False, exp_dir=config.output)]


def _validation_micro_batches(config: Config) -> int:
    """Lightning counts what the loader yields, and that is micro-batches of one data-parallel rank."""
    return config.data.validation_samples // (config.trainer.micro_batch_size * config.data_parallel)


def _strategy(config: Config, on_gpu: bool) -> SynchronizedStrategy:
    parallel = config.parallel
    strategy = SynchronizedStrategy(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline,
        context_parallel_size=parallel.context,
        sequence_parallel=parallel.sequence,
        process_group_backend="nccl" if on_gpu else "gloo",
        ckpt_async_save=config.trainer.async_save,
        ckpt_optim_fully_reshardable=config.trainer.checkpoint_resharding is Resharding.full,
        replace_progress_bar=False,
        ddp=DistributedDataParallelConfig(
            use_distributed_optimizer=True,
            overlap_grad_reduce=parallel.overlap_grad_reduce,
            overlap_param_gather=parallel.overlap_param_gather,
            average_in_collective=False,  # the loss is a sum that is divided by the global label count at the end
            check_for_nan_in_grad=False,  # TrainingLoop looks at the norm, which all ranks have
        ),
    )
    strategy.shape = resharding.shape(config)  # no argument: NeMo writes those into each checkpoint, as it can
    return strategy


def _optimizer(config: Config) -> MegatronOptimizerModule:
    optim = config.optim
    return MegatronOptimizerModule(
        config=OptimizerConfig(
            **of_optimizer(config),
            **(_offloaded(config) if optim.offload else {}),
        ),
        lr_scheduler=_scheduler(optim, config.trainer.max_steps),
    )


def _offloaded(config: Config) -> dict[str, Any]:
    """Of Megatron's hybrid optimizer. Only the precision-aware one keeps no fp32 parameters on the GPU."""
    return {
        "optimizer_cpu_offload": True,
        "optimizer_offload_fraction": config.optim.offload,
        "overlap_cpu_optimizer_d2h_h2d": True,
        "use_precision_aware_optimizer": True,
        "main_grads_dtype": torch.float32 if config.trainer.grad_dtype is Precision.fp32 else torch.bfloat16,
    }


def _scheduler(optim: Optim, max_steps: int) -> CosineAnnealingScheduler | WarmupPolicyScheduler:
    if optim.schedule is Schedule.constant:
        return WarmupPolicyScheduler(max_steps=max_steps, warmup_steps=optim.warmup_steps)
    return CosineAnnealingScheduler(
        max_steps=max_steps, warmup_steps=optim.warmup_steps, constant_steps=0, min_lr=optim.min_lr
    )


def _logger(config: Config, output: Path, done: int, chosen: list[Logger]) -> nl.NeMoLogger:
    """What it finds of steps after ``done``, of an attempt that was killed, is dropped."""
    metrics = JsonLinesLogger(output / "metrics.jsonl")
    metrics.drop_after(done)
    return nl.NeMoLogger(
        explicit_log_dir=str(output),
        update_logger_directory=False,  # theirs are right; NeMo would forget the id of a run at Weights & Biases too
        extra_loggers=[*chosen, metrics],
        ckpt=Checkpoints(output / "checkpoints", config.trainer.checkpoint_interval, config.trainer.checkpoints_kept),
    )
