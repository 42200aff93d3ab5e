"""Our rows in Megatron-Bridge: iterators of our own, over which its loop goes.

Every rank reads whole rows of its data-parallel part, and :func:`nemo_cdt.megatron.microbatch.take` keeps this rank's
positions of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from megatron.bridge.data.base import DatasetBuildContext, DatasetProvider
from megatron.core import parallel_state
from torch.utils.data import DataLoader, Dataset

from nemo_cdt.config import Config
from nemo_cdt.data.balanced import BalancedSteps
from nemo_cdt.data.rows import Row, Rows
from nemo_cdt.megatron.rows import AnyRows, RankSteps, StepsFrom, collated


class Stream:
    """An iterator whose source is set later: when it is known where a run goes on."""

    def __init__(self) -> None:
        self._source: Iterator[Any] = iter(())

    def begin(self, source: Iterator[Any]) -> None:
        self._source = source

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Any:
        return next(self._source)


@dataclass
class RowStreams(DatasetProvider):
    """What Bridge asks for its data; it gets the two streams, which are set when training and validation begin."""

    dataloader_type: str = "external"
    train: Stream = field(default_factory=Stream)
    held_out: Stream = field(default_factory=Stream)

    def build_datasets(self, context: DatasetBuildContext) -> tuple[Any, Any, Any]:
        return self.train, self.held_out, None


def training(rows: AnyRows, config: Config, done: int) -> Iterator[Any]:
    """This rank's micro-batches from step ``done`` on; of dealt documents, all of a step's at once."""
    if isinstance(rows, BalancedSteps):
        steps = RankSteps(rows)
        return iter(DataLoader(steps, sampler=StepsFrom(done, len(steps)), collate_fn=collated, **_reading(config)))
    places = _places(done * config.trainer.global_batch_size, len(rows), config.trainer.micro_batch_size)
    return iter(DataLoader(cast(Dataset[Row], rows), batch_sampler=places, **_reading(config)))


def validation(rows: Rows, config: Config) -> Iterator[Any]:
    places = _places(0, config.data.validation_samples, config.trainer.micro_batch_size)
    return iter(DataLoader(cast(Dataset[Row], rows), batch_sampler=places, **_reading(config)))


def _places(first: int, end: int, size: int) -> list[list[int]]:
    """As Megatron's sampler: micro-batches are dealt to the data-parallel ranks in turn."""
    rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    begins = range(first + rank * size, end - (ranks - 1 - rank) * size - size + 1, ranks * size)
    return [list(range(begin, begin + size)) for begin in begins]


def _reading(config: Config) -> dict[str, Any]:
    workers = config.data.num_workers
    return {"num_workers": workers, "pin_memory": torch.cuda.is_available(), "persistent_workers": workers > 0}
