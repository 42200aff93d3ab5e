"""LongCE in Megatron's schedule: each step first runs its micro-batches' windows, then trains with their weights.

The windows of several documents and rows are packed side by side into micro-batches no longer than training's own, so
that they fit wherever training does. Every rank that shares a row cuts it into the same windows: they come from the
whole rows, before context parallelism splits them.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor, nn
from torch.distributed import ReduceOp

from nemo_cdt.megatron.marks import WINDOWS
from nemo_cdt.megatron.microbatch import OF_TRAINING, MicroBatch, loaded, place, take
from nemo_cdt.megatron.schedule import ForwardStep, chunks_of, unscheduled, whole_batch
from nemo_cdt.megatron.sums import StepSums
from nemo_cdt.objectives.longce import weights as longce

Rows = dict[str, Tensor]
"""A micro-batch as the data loader yields it: whole rows, on the CPU."""
Score = Callable[[list[Rows]], list[MicroBatch]]

NAMES = ("tokens", "measured", "weight", "capped", "weighted_loss")
"""Of the sums over labelled tokens that :class:`LongCESchedule` keeps."""
SHORT_LOSS = OF_TRAINING + "short_loss"
"""Entry of a micro-batch: float32 [b, s], s_j of each target."""


class Cut(NamedTuple):
    """A window in its rows: positions start to end - 1 of row ``row`` of micro-batch ``batch``."""

    batch: int
    row: int
    start: int
    measured: int
    end: int


class LongCESchedule:
    """Measures s_j in windows, trains with LongCE's weights. Forward-only calls pass through.

    ``schedule`` may itself be CDT's two passes, whose detection then sees no weights. The windows are not
    denoised: what is noise was found in the whole context, and a window is another.

    Like the authors' trainer it measures with the model in training mode, each forward with a dropout of its own: where
    dropout is on, s_j and l_j differ by that too.
    """

    def __init__(
        self, schedule: Callable[..., list], *, window: int, stride: int, gamma: float, sums: StepSums
    ) -> None:
        self.schedule = schedule
        self.window = window
        self.stride = stride
        self.gamma = gamma
        self.sums = sums

    def __call__(
        self,
        *,
        forward_step_func: ForwardStep,
        data_iterator: Iterator | list[Iterator],
        model: nn.Module | list[nn.Module],
        num_microbatches: int,
        forward_only: bool = False,
        **rest: Any,
    ) -> list:
        call = {"model": model, **rest}
        if forward_only:
            return self.schedule(
                forward_step_func=forward_step_func,
                data_iterator=data_iterator,
                num_microbatches=num_microbatches,
                forward_only=True,
                **call,
            )

        def score(rows: list[Rows]) -> list[MicroBatch]:
            return self._score(rows, forward_step_func, call)

        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            iterator = _scored_at_once(data_iterator, score, num_microbatches)
        else:
            iterator = _scored_one_by_one(data_iterator, score)
        return self.schedule(
            forward_step_func=self._weighted(forward_step_func),
            data_iterator=iterator,
            num_microbatches=num_microbatches,
            forward_only=False,
            **call,
        )

    def _weighted(self, forward_step_func: ForwardStep) -> ForwardStep:
        def forward(iterator: Iterator, model: nn.Module) -> tuple[Tensor, Callable]:
            batch = take(iterator)
            output, reduction = forward_step_func(iter([batch]), model)
            if SHORT_LOSS in batch and get_attr_wrapped_model(model, "post_process"):
                weight = longce.weights(batch[SHORT_LOSS], output, self.gamma)
                self._add(batch, output.detach(), weight)
                output = longce.weighted(output, weight)
            return output, reduction

        return forward

    def _add(self, batch: MicroBatch, loss_BS: Tensor, weight_BS: Tensor) -> None:
        measured_BS, capped_BS = batch[SHORT_LOSS] != longce.UNMEASURED, weight_BS >= self.gamma
        columns = (torch.ones_like(weight_BS), measured_BS, weight_BS, capped_BS, weight_BS * loss_BS)
        sums = ((batch["loss_mask"] * column).sum(dtype=torch.float64) for column in columns)
        self.sums.add(**dict(zip(NAMES, sums, strict=True)))

    def _score(self, rows: list[Rows], forward_step_func: ForwardStep, call: dict[str, Any]) -> list[MicroBatch]:
        """The micro-batches, on the last pipeline stage with :data:`SHORT_LOSS`."""
        with self.sums.timed(WINDOWS):
            cuts = [cut for index, batch in enumerate(rows) for cut in cut_rows(index, batch, self.window, self.stride)]
            chunks = chunks_of(call["model"])
            batches = [place(batch) for batch in packed(cuts, rows, multiple_of=_stages(chunks))]
            losses = self._losses(batches, chunks, forward_step_func, call)
            placed = [place(batch) for batch in rows]
            if parallel_state.is_pipeline_last_stage(ignore_virtual=True):
                for batch, short_BS in zip(placed, _spread(rows, batches, losses), strict=True):
                    batch[SHORT_LOSS] = short_BS.gather(1, batch["positions"])
        return placed

    def _losses(
        self, batches: list[MicroBatch], chunks: list[nn.Module], step: ForwardStep, call: dict[str, Any]
    ) -> list[Tensor]:
        """The cross-entropy of each, [1, s], on the last pipeline stage; nothing on others."""
        if not batches:
            return []

        def forward(iterator: Iterator, model: nn.Module) -> tuple[Tensor, Callable]:
            output, _ = step(iterator, model)
            return output, lambda output, non_loss_data: output

        iterators = [iter(batches) for _ in chunks]
        changed: dict[str, Any] = {"seq_length": batches[0].row_length, "micro_batch_size": 1}
        with torch.no_grad(), unscheduled(chunks):
            return self.schedule(
                forward_step_func=forward,
                data_iterator=iterators if isinstance(call["model"], list) else iterators[0],
                num_microbatches=len(batches),
                forward_only=True,
                collect_non_loss_data=True,
                **call | changed,
            )


def cut_rows(batch: int, rows: Rows, window: int, stride: int) -> Iterator[Cut]:
    """The windows of micro-batch number ``batch`` that measure a labelled token."""
    for row, lengths in enumerate(rows["document_lengths"].tolist()):
        edges = rows["cu_seqlens"][row].tolist() if "cu_seqlens" in rows else [0]
        for first, fed in zip(edges, lengths, strict=False):
            for found in longce.windows(fed, window=window, stride=stride):
                cut = Cut(batch, row, first + found.start, first + found.measured, first + found.end)
                if rows["loss_mask"][row, cut.measured : cut.end].any():
                    yield cut


def packed(cuts: list[Cut], rows: list[Rows], *, multiple_of: int) -> list[Rows]:
    """Rows of as many windows as fit in a training micro-batch; a multiple of ``multiple_of`` of them, or none.

    ``source``: int64 [1, s], where each position comes from in ``rows``, laid out flat one after another.
    """
    if not cuts:
        return []
    split = parallel_state.get_context_parallel_world_size() * parallel_state.get_tensor_model_parallel_world_size()
    multiple = 2 * split  # zig-zag order, and sequence parallelism's equal parts
    width = -(-max(cut.end - cut.start for cut in cuts) // multiple) * multiple
    most = max(1, max(batch["tokens"].numel() for batch in rows) // width)
    count = -(-len(cuts) // most)
    count = -(-count // multiple_of) * multiple_of
    slots = -(-len(cuts) // count)
    return [_side_by_side(cuts[i * slots : (i + 1) * slots], rows, slots, width) for i in range(count)]


def _side_by_side(cuts: list[Cut], rows: list[Rows], slots: int, width: int) -> Rows:
    names = ("tokens", "labels", "position_ids", "source")
    entries = {name: torch.zeros(1, slots * width, dtype=torch.int64) for name in names}
    entries["loss_mask"] = torch.zeros(1, slots * width)
    entries["cu_seqlens"] = torch.arange(0, slots * width + 1, width, dtype=torch.int32)[None]
    before = [0, *accumulate(batch["tokens"].numel() for batch in rows)]
    for slot, cut in enumerate(cuts):
        length, skipped = cut.end - cut.start, cut.measured - cut.start
        row_length = rows[cut.batch]["tokens"].size(1)
        here, there = slice(slot * width, slot * width + length), (cut.row, slice(cut.start, cut.end))
        for name in ("tokens", "labels", "loss_mask"):
            entries[name][0, here] = rows[cut.batch][name][there]
        entries["loss_mask"][0, here.start : here.start + skipped] = 0
        entries["position_ids"][0, here] = torch.arange(length)
        entries["source"][0, here] = torch.arange(length) + before[cut.batch] + cut.row * row_length + cut.start
    return entries


def _spread(rows: list[Rows], batches: list[MicroBatch], losses: list[Tensor]) -> list[Tensor]:
    """s of every position of ``rows``, whole on each rank: of each micro-batch [b, S]."""
    sizes = [batch["tokens"].numel() for batch in rows]
    short = torch.full((sum(sizes),), longce.UNMEASURED, device=torch.cuda.current_device())
    for batch, loss in zip(batches, losses, strict=True):
        at_N = batch["labelled"]  # in [s, 1], which lies as [1, s] does
        short[batch["source"].flatten()[at_N]] = loss.flatten()[at_N].float()
    group = parallel_state.get_context_parallel_group()
    if batches and group.size() > 1:  # each rank measured its part of each window
        torch.distributed.all_reduce(short, op=ReduceOp.MAX, group=group)
    return [each.view(batch["tokens"].shape) for each, batch in zip(short.split(sizes), rows, strict=True)]


def _scored_one_by_one(data_iterator: Iterator | list[Iterator], score: Score) -> Iterator:
    iterator = data_iterator[0] if isinstance(data_iterator, list) else data_iterator
    return (score([loaded(item)])[0] for item in iterator)


def _scored_at_once(data_iterator: Iterator | list[Iterator], score: Score, count: int) -> Iterator | list[Iterator]:
    """In a pipeline."""
    rows, again = whole_batch(data_iterator, count, lambda iterator: loaded(next(iterator)))
    return again(score(rows))


def _stages(chunks: list[nn.Module]) -> int:
    """Of how many the number of micro-batches must be a multiple: an interleaved schedule asks for it."""
    return parallel_state.get_pipeline_model_parallel_world_size() if len(chunks) > 1 else 1
