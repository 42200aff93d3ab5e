"""Rows of documents as a NeMo data module: Megatron's sampler decides who reads what, and where a run resumes."""

import logging
from dataclasses import replace
from typing import Any

import lightning.pytorch as L
import torch
from megatron.core.num_microbatches_calculator import update_num_microbatches
from nemo.lightning.data import WrappedDataLoader
from nemo.lightning.pytorch.plugins import MegatronDataSampler
from transformers import PreTrainedTokenizerFast

from nemo_cdt.config import Config, DataName, ObjectiveName
from nemo_cdt.data.preferences import REJECTED, PreferenceRows
from nemo_cdt.data.rows import PackedRows, Rows
from nemo_cdt.data.split import load_documents

logger = logging.getLogger("nemo_cdt")


AnyRows = Rows | PackedRows | PreferenceRows


def load_rows(config: Config, tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> tuple[AnyRows, Rows]:
    """Training rows in the run's order, and validation rows, which are never packed: of preferences the chosen answers.

    Raises:
        ValueError: for what is wrong with the data.
    """
    data, count = config.data, config.trainer.max_steps * config.trainer.global_batch_size
    if config.trainer.val_interval == 0:
        data = replace(data, validation_samples=0)  # nothing is held out for a validation that never comes
    multiple = 2 * config.parallel.context if config.parallel.context > 1 else 1
    if data.name is DataName.preferences:
        data = replace(data, document_length=data.seq_length // (1 + REJECTED) // multiple * multiple)
    train, validation = load_documents(
        data,
        tokenizer,
        seed=config.trainer.seed,
        max_documents=_UNBOUNDED if data.pack else count,
        vocab_size=vocab_size,
        prompted=ObjectiveName.sft in config.objectives,
    )
    held_out = Rows(validation, data.seq_length)
    if data.name is DataName.preferences:
        return PreferenceRows(train, data.seq_length, multiple=multiple), held_out
    if not data.pack:
        return Rows(train, data.seq_length), held_out
    packed = PackedRows(train, data.seq_length, count=count, multiple=multiple)
    logger.info(
        "packed %d documents into %d rows of %d positions, %.1f %% of them padding",
        packed.first[-1], count, data.seq_length, 100 * packed.wasted / (count * data.seq_length),
    )  # fmt: skip
    return packed, held_out


_UNBOUNDED = 2**40
"""Documents that a packed run may ask for: how many it needs is known once they are packed."""


class RowDataModule(L.LightningDataModule):
    """train must hold ``trainer.max_steps * trainer.global_batch_size`` rows, in the order in which they are read."""

    def __init__(self, config: Config, train: AnyRows, validation: AnyRows) -> None:
        super().__init__()
        self.num_workers = config.data.num_workers
        self.train = train
        self.validation = validation
        self.data_sampler = MegatronDataSampler(
            seq_len=config.data.seq_length,
            micro_batch_size=config.trainer.micro_batch_size,
            global_batch_size=config.trainer.global_batch_size,
            output_log=False,
        )

    def train_dataloader(self) -> WrappedDataLoader:
        return self._loader(self.train, "train")

    def val_dataloader(self) -> WrappedDataLoader:
        return self._loader(self.validation, "validation")

    def _loader(self, rows: AnyRows, mode: str) -> WrappedDataLoader:
        assert self.trainer is not None
        self.data_sampler.init_global_step = self.trainer.global_step
        return WrappedDataLoader(
            mode=mode,
            dataset=rows,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        step = self.trainer.global_step - self.data_sampler.init_global_step
        return {"consumed_samples": self.data_sampler.compute_consumed_samples(step)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        consumed = state_dict["consumed_samples"]
        self.data_sampler.init_consumed_samples = consumed
        self.data_sampler.prev_consumed_samples = consumed
        update_num_microbatches(consumed_samples=consumed, consistency_check=False)
