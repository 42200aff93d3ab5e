"""Documents as a NeMo data module: Megatron's sampler decides who reads what, and where a resumed run goes on."""

from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from megatron.core.num_microbatches_calculator import update_num_microbatches
from nemo.lightning.data import WrappedDataLoader
from nemo.lightning.pytorch.plugins import MegatronDataSampler

from nemo_cdt.config import Config
from nemo_cdt.data.documents import Documents
from nemo_cdt.data.rows import row


class DocumentDataModule(L.LightningDataModule):
    """Rows of one document each.

    train must hold ``trainer.max_steps * trainer.global_batch_size`` documents, in the order in which they are read.
    """

    def __init__(self, config: Config, train: Documents, validation: Documents) -> None:
        super().__init__()
        self.seq_length = config.data.seq_length
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

    def _loader(self, documents: Documents, mode: str) -> WrappedDataLoader:
        self.data_sampler.init_global_step = self.trainer.global_step
        return WrappedDataLoader(
            mode=mode,
            dataset=Rows(documents, self.seq_length),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def state_dict(self) -> dict[str, Any]:
        step = self.trainer.global_step - self.data_sampler.init_global_step
        return {"consumed_samples": self.data_sampler.compute_consumed_samples(step)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        consumed = state_dict["consumed_samples"]
        self.data_sampler.init_consumed_samples = consumed
        self.data_sampler.prev_consumed_samples = consumed
        update_num_microbatches(consumed_samples=consumed, consistency_check=False)


class Rows(torch.utils.data.Dataset):
    def __init__(self, documents: Documents, seq_length: int) -> None:
        self.documents = documents
        self.seq_length = seq_length

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return row(self.documents[index], self.seq_length)
