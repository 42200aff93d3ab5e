"""The rows that a run trains and validates on, whatever framework drives Megatron."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from megatron.core import parallel_state
from torch.utils.data import Dataset, Sampler, default_collate
from transformers import PreTrainedTokenizerFast

from nemo_cdt.config import Config, Data, DataName
from nemo_cdt.cost.steptime import document_cost
from nemo_cdt.data.balanced import BalancedSteps
from nemo_cdt.data.documents import Documents
from nemo_cdt.data.order import Shuffled, Subset
from nemo_cdt.data.preferences import REJECTED, PreferenceRows
from nemo_cdt.data.rows import PackedRows, Row, Rows
from nemo_cdt.data.split import load_documents
from nemo_cdt.megatron.indexed import IndexedDocuments
from nemo_cdt.objectives import objectives_of
from nemo_cdt.prepared import TRAIN, VALIDATION, read_summary

logger = logging.getLogger("nemo_cdt")

AnyRows = Rows | PackedRows | BalancedSteps | PreferenceRows


def load_rows(config: Config, tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> tuple[AnyRows, Rows]:
    """Training rows in the run's order, and validation rows, which are never packed: of preferences the chosen answers.

    Raises:
        ValueError: for what is wrong with the data.
    """
    data, steps, rows = validated_on(config), config.trainer.max_steps, config.trainer.global_batch_size
    count = steps * rows
    multiple = config.document_multiple
    if data.name is DataName.preferences:
        data = replace(data, document_length=data.seq_length // (1 + REJECTED) // multiple * multiple)
    seed, documents = config.trainer.seed, _UNBOUNDED if data.pack else count
    if data.name is DataName.prepared:
        prepared, validation = prepared_documents(data, vocab_size)
        train: Documents = Shuffled(prepared, seed=seed, length=documents, shuffle=data.shuffle)
    else:
        train, validation = load_documents(
            data,
            tokenizer,
            seed=seed,
            max_documents=documents,
            vocab_size=vocab_size,
            prompted=any(one.prompted for one in objectives_of(config)),
        )
    held_out = Rows(validation, data.seq_length)
    if data.name is DataName.preferences:
        return PreferenceRows(train, data.seq_length, multiple=multiple), held_out
    if not data.pack:
        return Rows(train, data.seq_length), held_out
    if config.deals:
        balanced = BalancedSteps(
            train,
            data.seq_length,
            steps=steps,
            rows=rows,
            cost=partial(document_cost, config),
            multiple=multiple,
            row_multiple=config.row_multiple,
        )
        _tell(balanced, config)
        return balanced, held_out
    packed = PackedRows(train, data.seq_length, count=count, multiple=multiple)
    logger.info(
        "packed %d documents into %d rows of %d positions, %.1f %% of them padding",
        packed.first[-1], count, data.seq_length, 100 * packed.wasted / (count * data.seq_length),
    )  # fmt: skip
    return packed, held_out


def _tell(steps: BalancedSteps, config: Config) -> None:
    idle = [steps.idle(step, config.data_parallel) for step in range(min(len(steps), LOOKED_AT))]
    logger.info(
        "packed %d documents of %d positions into %d steps; GPUs will wait for the one that has most to do %.1f %% of "
        "the time, by the cost model",
        steps.first[-1], sum(steps.lengths), len(steps), 100 * float(np.mean(idle)),
    )  # fmt: skip


LOOKED_AT = 50
"""Steps whose balance is told."""


def validated_on(config: Config) -> Data:
    """Nothing is held out for a validation that never comes."""
    return config.data if config.trainer.val_interval else replace(config.data, validation_samples=0)


def prepared_documents(data: Data, vocab_size: int) -> tuple[Documents, Documents]:
    """What a folder of `nemo-cdt prepare` has to train on, and the first ``data.validation_samples`` that it holds out.

    Raises:
        ValueError: where the model has no room for the tokenizer's vocabulary.
    """
    folder = Path(data.path or "")
    size = read_summary(folder)["tokenizer"]["size"]
    if size > vocab_size:
        raise ValueError(f"model.vocab_size={vocab_size} is smaller than the {size} of the tokenizer of {folder}")
    train, count = IndexedDocuments(folder / TRAIN), data.validation_samples
    return train, Subset(IndexedDocuments(folder / VALIDATION) if count else train, np.arange(count))


_UNBOUNDED = 2**40
"""Documents that a packed run may ask for: how many it needs is known once they are packed."""


class RankSteps(Dataset[list[Row]]):
    """This data-parallel rank's micro-batches of each step."""

    def __init__(self, steps: BalancedSteps) -> None:
        self._steps = steps
        self._rank = parallel_state.get_data_parallel_rank()
        self._ranks = parallel_state.get_data_parallel_world_size()
        stages = parallel_state.get_pipeline_model_parallel_world_size()
        interleaved = (parallel_state.get_virtual_pipeline_model_parallel_world_size() or 1) > 1
        self._multiple_of = stages if interleaved else 1  # as that schedule asks

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, step: int) -> list[Row]:
        return self._steps.batches(step, self._rank, self._ranks, self._multiple_of)


class StepsFrom(Sampler[int]):
    """``first`` to ``end``. As long as all of it: Lightning compares its length with all steps, earlier ones too."""

    def __init__(self, first: int, end: int) -> None:
        self._first = first
        self._end = end

    def __len__(self) -> int:
        return self._end

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._first, self._end))


def collated(items: list[list[Row]]) -> list[dict[str, torch.Tensor]]:
    (rows,) = items
    return [default_collate([row]) for row in rows]
