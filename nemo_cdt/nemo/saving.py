"""When a run saves and what it keeps: ``OUTPUT/checkpoints/step=N``, and the links ``last`` and ``best``."""

import errno
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.utilities.exceptions import SIGTERMException
from nemo import lightning as nl
from nemo.lightning.io.pl import TrainerContext
from nemo.lightning.pytorch.trainer import NoValOnRestartTrainingLoop
from nemo.utils.callbacks.dist_ckpt_io import AsyncFinalizableCheckpointIO, AsyncFinalizerCallback
from torch.distributed.checkpoint.api import CheckpointException

from nemo_cdt.checkpoint.checksums import write_checksums
from nemo_cdt.checkpoint.steps import STEP, finished_checkpoints, point, step_of
from nemo_cdt.checkpoint.writer import start_writer
from nemo_cdt.nemo import randomness
from nemo_cdt.nemo.strategy import SynchronizedStrategy
from nemo_cdt.utils.user_errors import TrainingFailedError

logger = logging.getLogger("nemo_cdt")


class TrainingLoop(NoValOnRestartTrainingLoop):
    """Saves between two steps, when all of a step is done: its validation and its row in ``metrics.jsonl`` too.

    No hook of Lightning comes that late: what NeMo's callback saves counts steps and validations one off.
    """

    _preempted = False

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Raises TrainingFailedError on every rank, before anything is validated or saved."""
        # The ranks agree, since a signal may reach them in different steps, and each pipeline stage has its own loss.
        # Lightning would stop each at its own, and Megatron's check for NaNs the one rank that has one.
        self._preempted, failed = on_any_rank(self.trainer.received_sigterm, bool(wrong := self._not_finite()))
        saving = [callback for callback in self.trainer.callbacks if isinstance(callback, Checkpoints)]
        if failed:
            for callback in saving:
                callback.finish(self.trainer)
            raise TrainingFailedError(
                f"step {self.trainer.global_step}: {' and '.join(wrong) or 'not finite on other ranks'}"
            )
        with suppress(SIGTERMException):
            super().on_advance_end(data_fetcher)
        for callback in saving:
            callback.after_step(self.trainer, self._preempted)
        if self._preempted:
            raise SIGTERMException

    def _not_finite(self) -> list[str]:
        """What of the step's loss and gradient norm is no number, as this rank has them; the norm is of all ranks."""
        names = {"reduced_train_loss": "the loss", "grad_norm": "the gradient's norm"}
        metrics = self.trainer.callback_metrics
        values = {said: float(metrics[name]) for name, said in names.items() if name in metrics}
        return [f"{said} is {value}" for said, value in values.items() if not math.isfinite(value)]

    def _should_check_val_fx(self, data_fetcher: _DataFetcher) -> bool:
        self.batch_progress.is_last_batch = False  # as below; and Lightning would validate there
        return not self._preempted and super()._should_check_val_fx(data_fetcher)  # little time is left to save

    def _num_ready_batches_reached(self) -> bool:
        """Never: there are no epochs. A resumed run's loader is shorter by what it has consumed; Lightning would end
        an epoch there, and begin the next with data that were read before."""
        return False


class Checkpoints(nl.ModelCheckpoint, AsyncFinalizerCallback):
    """Saves every ``interval`` steps, after the last and when preempted; keeps the ``kept`` newest (0: all) and the one
    with the lowest validation loss of those that were validated when they were saved.

    NeMo's callback writes and marks what is unfinished. Its own triggers are off: :class:`TrainingLoop` calls. So are
    those of its AsyncFinalizerCallback, which NeMo would add, and which would finish a save in the midst of a step.
    """

    def __init__(self, folder: Path, interval: int, kept: int) -> None:
        super().__init__(
            dirpath=folder,
            filename="step={step}",
            monitor=None,
            save_top_k=0,
            save_last=False,
            every_n_train_steps=0,
            save_optim_on_train_end=True,
            # NeMo would only warn where the context cannot be written, and call the checkpoint finished
            always_save_context=False,
            save_context_on_train_end=False,
        )
        self.folder = folder
        self.interval = interval
        self.kept = kept
        self.val_losses: dict[int, float] = {}
        self._random: dict[str, Any] | None = None
        self._saving: Path | None = None
        self._since = self._waited = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"val_losses": self.val_losses, "random": randomness.states()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.val_losses, self._random = state_dict["val_losses"], state_dict["random"]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        keep_only_progress(checkpoint)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        start_writer()
        if self._random is not None:
            randomness.restore(self._random)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.val_losses[trainer.global_step] = float(trainer.callback_metrics["val_loss"])

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing: after the last step all was saved."""

    def after_step(self, trainer: L.Trainer, preempted: bool) -> None:
        step = trainer.global_step
        last = preempted or step == trainer.max_steps
        due = last or (self.interval > 0 and step % self.interval == 0)
        self.finish(trainer, wait=due)  # a host holds one at a time
        if due:
            if any(on_any_rank(not math.isfinite(norm_of_weights(trainer)))):
                raise TrainingFailedError(f"step {step}: the weights are too large or no numbers after it")
            self._save(trainer, self.folder / f"step={step}")
            self.finish(trainer, wait=last)

    def _save(self, trainer: L.Trainer, checkpoint: Path) -> None:
        self._saving, self._since, self._waited = checkpoint, time.perf_counter(), 0.0
        with self._waiting(checkpoint):
            self.set_checkpoint_unfinished_marker(checkpoint, barrier_after=True)
            if trainer.is_global_zero:
                TrainerContext.from_trainer(trainer).io_dump(checkpoint / "context", yaml_attrs=["model"])
            self._save_checkpoint(trainer, str(checkpoint))

    def finish(self, trainer: L.Trainer, wait: bool = True) -> None:
        """Makes whole what is being saved, where all ranks have written it. Collective."""
        if self._saving is None:
            return
        with self._waiting(self._saving):
            writer = trainer.strategy.checkpoint_io
            if isinstance(writer, AsyncFinalizableCheckpointIO) and not writer.maybe_finalize_save_checkpoint(wait):
                return
            self._tidy(trainer)
        for metrics in trainer.loggers:
            metrics.log_metrics({"save_time": self._waited}, step=trainer.global_step - 1)
        took = time.perf_counter() - self._since
        logger.info("%s was saved in %.1f s; training waited %.1f s", self._saving.name, took, self._waited)
        self._saving = None

    @contextmanager
    def _waiting(self, checkpoint: Path) -> Iterator[None]:
        """Raises OSError, a line with what to do, where it cannot be written; then nothing of it is left."""
        start = time.perf_counter()
        try:
            yield
        except (Exception, CheckpointException) as error:  # the second is no Exception
            free = f"{shutil.disk_usage(self.folder).free >> 20} MiB"
            shutil.rmtree(checkpoint, ignore_errors=True)  # its marker stays, for what other ranks still write
            if _could_not_write(error):
                raise OSError(f"{checkpoint} could not be saved, with {free} free: {self._advice()}") from error
            raise
        finally:
            self._waited += time.perf_counter() - start

    def _get_finalize_save_checkpoint_callback(
        self, trainer: L.Trainer, filepath: str, global_step: int
    ) -> Callable[[], None]:
        """NeMo's, which marks the checkpoint as finished; its checksums are there before."""
        finish = super()._get_finalize_save_checkpoint_callback(trainer, filepath, global_step)

        def finalize() -> None:
            everyone: list[Any] = [None] * trainer.world_size
            assert isinstance(trainer.strategy, SynchronizedStrategy)
            torch.distributed.all_gather_object(everyone, trainer.strategy.take_sums())  # and so all have written
            if trainer.is_global_zero:
                write_checksums(Path(filepath), {name: each for sums in everyone for name, each in sums.items()})
            finish()

        return finalize

    def setup(self, trainer: L.Trainer, *arguments: Any, **named: Any) -> None:
        """NeMo's but for how it removes what is unfinished."""
        if trainer.is_global_zero:
            self._remove_unfinished()
        trainer.strategy.barrier()
        self.async_save = getattr(trainer.strategy, "async_save", False)
        super(nl.ModelCheckpoint, self).setup(trainer, *arguments, **named)

    def _remove_unfinished(self) -> None:
        """Of a run's own names alone, and through no link: NeMo's would follow one, and takes any name for its own."""
        for marker in self.folder.glob("step=*-unfinished"):
            checkpoint = marker.with_name(marker.name.removesuffix("-unfinished"))
            if STEP.fullmatch(checkpoint.name) and marker.is_file() and not marker.is_symlink():
                if checkpoint.is_dir() and not checkpoint.is_symlink():
                    logger.warning("%s is not whole and is removed", checkpoint)
                    shutil.rmtree(checkpoint)
                marker.unlink()

    def _advice(self) -> str:
        finished = finished_checkpoints(self.folder)
        return f"make room, and set resume=true to go on from {finished[-1].name}" if finished else "make room"

    def _tidy(self, trainer: L.Trainer) -> None:
        """Links first, so that they never point at what is removed."""
        finished: list[Path] = trainer.strategy.broadcast(finished_checkpoints(self.folder))
        self.val_losses = trainer.strategy.broadcast(self.val_losses)  # rank 0's, so that all remove the same
        best = self._best(finished)
        if trainer.is_global_zero:
            point(self.folder / "last", finished[-1])
            if best:
                point(self.folder / "best", best)
        for checkpoint in finished[: -self.kept]:  # none where it is 0
            if checkpoint != best:
                # not by NeMo's own, which takes the mark away while a thread still removes, where it saves so too
                self.set_checkpoint_unfinished_marker(checkpoint, barrier_after=True)
                trainer.strategy.remove_checkpoint(checkpoint)
                self.remove_checkpoint_unfinished_marker(checkpoint, barrier_before=True)

    def _best(self, finished: list[Path]) -> Path | None:
        losses = {c: loss for c in finished if math.isfinite(loss := self.val_losses.get(step_of(c), math.nan))}
        return min(losses, key=lambda checkpoint: losses[checkpoint]) if losses else None


def on_any_rank(*mine: bool) -> list[bool]:
    """Of each, whether it is so on one of all ranks. All of them call it."""
    found = torch.tensor(mine, dtype=torch.int, device=torch.cuda.current_device())
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return [bool(one) for one in found.tolist()]


def norm_of_weights(trainer: L.Trainer) -> float:
    """Of this rank's. In fp32, where it is infinite for weights whose products would be: no forward pass has those."""
    assert trainer.model is not None
    norms = [torch.linalg.vector_norm(weight.detach(), dtype=torch.float32) for weight in trainer.model.parameters()]
    return float(torch.stack(norms).norm())


def keep_only_progress(checkpoint: dict[str, Any]) -> None:
    """Of a schedule only where it stands, so that a resumed run may have another ``trainer.max_steps``."""
    progress = ("last_epoch", "_step_count", "_last_lr")
    for schedule in checkpoint.get("lr_schedulers", []):
        for name in schedule.keys() - progress:
            del schedule[name]


def _could_not_write(error: BaseException | None) -> bool:
    """Torch's writer of files says of a full disk only that it failed; from Megatron's processes comes a text."""
    system = (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    words = ("inline_container", "PytorchStreamWriter", *system)
    while error is not None:
        if any(word in str(error) for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False
