"""Books through NeMo's own pre-training data module: Megatron's ``GPTDataset``, each sample as a row of ours.

Megatron lays documents end to end and cuts a sample every ``seq_length`` tokens, so where each document has just
``seq_length`` of them a sample begins where a document does. It reads one token more, the label of its last position;
that is another book's, and is left out: of n tokens 1..n-1 are fed, as everywhere here. It also drops the last document
of the last epoch, which has no such token behind it. Its order is a function of the seed and of how many epochs
``trainer.max_steps`` makes: a run that resumes with more steps goes on in the same order within its first epoch alone.
"""

from typing import Any

import torch
from megatron.core.datasets.gpt_dataset import GPTDataset
from nemo.collections.common.tokenizers import AutoTokenizer
from nemo.collections.llm.gpt.data import PreTrainingDataModule
from nemo.lightning.data import WrappedDataLoader

from nemo_cdt.data.documents import Document
from nemo_cdt.data.rows import Row, Rows, row


class BookDataset(GPTDataset):
    """Samples of one document each. Makes no attention mask, which without Transformer Engine NeMo asks for, dense."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        if self.sample_index[:, 1].any():
            raise ValueError(f"{self.dataset_path}: not every document has {self.config.sequence_length} tokens")

    def __getitem__(self, index: int) -> Row:
        text, _ = self._query_document_sample_shuffle_indices(index)
        ids = text[: self.config.sequence_length]
        entries = row([Document(input_ids=ids, labels=ids)], self.config.sequence_length)
        del entries["cu_seqlens"]
        return entries


class BookDataModule(PreTrainingDataModule):
    """prefix: of the .bin and .idx to train on.  index: a folder of the run's own, for Megatron's index of samples.

    Validates on ``held_out``, each row once: Megatron would draw validation samples of several epochs. It is set
    afterwards, for NeMo writes the constructor's arguments into checkpoints.
    """

    held_out: Rows
    truncated = (0, 0)

    def __init__(
        self,
        prefix: str,
        *,
        tokenizer: AutoTokenizer,
        index: str,
        seq_length: int,
        micro_batch_size: int,
        global_batch_size: int,
        seed: int,
        num_workers: int,
    ) -> None:
        super().__init__(
            prefix,
            seq_length=seq_length,
            tokenizer=tokenizer,
            micro_batch_size=micro_batch_size,
            global_batch_size=global_batch_size,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            seed=seed,
            split="1,0,0",
            index_mapping_dir=index,
            output_log=False,
            dataset_cls=BookDataset,
        )

    def setup(self, stage: str = "") -> None:
        assert self.trainer is not None
        self.build(self.trainer.max_steps, 1, 0, 0)

    def val_dataloader(self) -> WrappedDataLoader:
        return self._create_dataloader(self.held_out, mode="validation")
