"""Rows of documents as a NeMo data module: Megatron's sampler decides who reads what, and where a run resumes."""

from pathlib import Path
from typing import Any, cast

import lightning.pytorch as L
import torch
from megatron.core.num_microbatches_calculator import update_num_microbatches
from nemo.collections.common.tokenizers import AutoTokenizer
from nemo.lightning.data import WrappedDataLoader
from nemo.lightning.pytorch.plugins import MegatronDataSampler
from torch.utils.data import DataLoader

from nemo_cdt.config import Config, DataName
from nemo_cdt.data.balanced import BalancedSteps
from nemo_cdt.data.rows import Rows
from nemo_cdt.megatron.rows import (
    AnyRows,
    RankSteps,
    StepsFrom,
    collated,
    load_rows,
    prepared_documents,
    validated_on,
)
from nemo_cdt.nemo.pretraining import BookDataModule
from nemo_cdt.prepared import TRAIN


def data_module(config: Config, tokenizer: AutoTokenizer, vocab_size: int) -> "RowDataModule | BookDataModule":
    """The data of a run, connected to OUTPUT where it keeps an index.

    Raises:
        ValueError: for what is wrong with the data.
    """
    if config.data.name is not DataName.pretrain:
        return RowDataModule(config, *load_rows(config, tokenizer.tokenizer, vocab_size))
    data = validated_on(config)
    _, validation = prepared_documents(data, vocab_size)
    books = BookDataModule(
        str(Path(data.path or "", TRAIN)),
        tokenizer=tokenizer,
        index=str(Path(config.output, "index")),
        seq_length=data.seq_length,
        micro_batch_size=config.trainer.micro_batch_size,
        global_batch_size=config.trainer.global_batch_size,
        seed=config.trainer.seed,
        num_workers=data.num_workers,
    )
    books.held_out = Rows(validation, data.seq_length)
    return books


class RowDataModule(L.LightningDataModule):
    """train must hold ``trainer.max_steps * trainer.global_batch_size`` rows, in the order in which they are read."""

    def __init__(self, config: Config, train: AnyRows, held_out: Rows) -> None:
        super().__init__()
        self.num_workers = config.data.num_workers
        self.train = train
        self.held_out = held_out
        sampler = StepSampler if isinstance(train, BalancedSteps) else MegatronDataSampler
        self.data_sampler = sampler(
            seq_len=config.data.seq_length,
            micro_batch_size=config.trainer.micro_batch_size,
            global_batch_size=config.trainer.global_batch_size,
            output_log=False,
        )

    @property
    def truncated(self) -> tuple[int, int]:
        """Documents cut and tokens lost so far, by this process and its workers."""
        return self.train.documents.truncated

    def train_dataloader(self) -> WrappedDataLoader:
        return self._loader(self.train, "train")

    def val_dataloader(self) -> WrappedDataLoader:
        return self._loader(self.held_out, "validation")

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


class StepSampler(MegatronDataSampler):
    """Yields all of a rank's micro-batches of a step at once, for :func:`nemo_cdt.megatron.schedule.step_by_step`.

    A position in the data is a number of steps, whatever the layout; NeMo has it as rows, global_batch_size a step.
    """

    def transform_dataloader(self, dataloader: DataLoader, consumed_samples: int = 0) -> DataLoader:
        if getattr(dataloader, "mode", "train") != "train":
            return super().transform_dataloader(dataloader, consumed_samples)
        steps = RankSteps(cast(BalancedSteps, dataloader.dataset))
        return DataLoader(
            steps,
            sampler=StepsFrom(self.init_consumed_samples // self.global_batch_size, len(steps)),
            collate_fn=collated,
            num_workers=dataloader.num_workers,
            pin_memory=dataloader.pin_memory,
            persistent_workers=dataloader.persistent_workers,
        )
