"""What a front end lends an objective for the time of a training."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nemo_cdt.config import Recompute
from nemo_cdt.megatron.groups import Groups
from nemo_cdt.megatron.microbatch import MicroBatch


@dataclass(kw_only=True, frozen=True)
class Engine:
    """The layout and the settings that a step has, whatever framework drives Megatron.

    Attributes:
        take: the next batch of a data iterator as this rank's part of it, on its device.
        groups: the ranks that share a sequence.
        pipelined: whether the model is split into pipeline stages.
        hidden_size: of the model's embedding.
        learning_rate: the optimizer's, as it is now.
        recompute: what detection's backward computes again; None is what training's does.
        fp8: whether detection is in FP8.
        observe: is shown what is detected, micro-batch by micro-batch.
    """

    take: Callable[[Iterator], MicroBatch]
    groups: Groups
    pipelined: bool
    hidden_size: int
    learning_rate: Callable[[], float]
    recompute: Recompute | None = None
    fp8: bool = False
    observe: Callable[[Any], None] | None = None
