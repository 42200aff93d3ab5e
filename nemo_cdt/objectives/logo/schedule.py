"""LOGO in Megatron's schedule: each micro-batch is one preference, its answers packed side by side."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor, nn

from nemo_cdt.megatron.microbatch import MicroBatch, take
from nemo_cdt.megatron.schedule import ForwardStep
from nemo_cdt.megatron.sums import StepSums
from nemo_cdt.objectives.logo.preference import Preference, advantage

NAMES = ("preferences", "preference_loss", "advantage", "preferred")


class LogoSchedule:
    """Trains on LOGO's loss in place of the cross-entropy. Forward-only calls pass through.

    The loss is no sum over tokens, so each rank backpropagates its own tokens' part of the linearised loss: with p
    summed over the context-parallel ranks, ``dL/dp_k`` over the answer's label count is the gradient of its tokens'
    log-probabilities.
    """

    def __init__(self, schedule: Callable[..., list], how: Preference, sums: StepSums) -> None:
        self.schedule = schedule
        self.how = how
        self.sums = sums

    def __call__(self, *, forward_step_func: ForwardStep, forward_only: bool = False, **rest: Any) -> list:
        step = forward_step_func if forward_only else self._preferring(forward_step_func)
        return self.schedule(forward_step_func=step, forward_only=forward_only, **rest)

    def _preferring(self, forward_step_func: ForwardStep) -> ForwardStep:
        def forward(iterator: Iterator, model: nn.Module) -> tuple[Tensor, Callable]:
            batch = take(iterator)
            output, _ = forward_step_func(iter([batch]), model)
            return output, lambda loss_BS: self._loss(loss_BS, batch)

        return forward

    def _loss(self, loss_BS: Tensor, batch: MicroBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """As Megatron's schedules want it: what to backpropagate, what to divide the step's gradient by, what to log.

        Logged as ``loss`` is the cross-entropy of chosen answers, which other objectives train on.
        """
        answer_BS, share_BS = batch["documents"].clamp(min=0), batch["label_share"]  # padding has no share
        each_BS = -loss_BS.detach() * share_BS
        mean_K = each_BS.new_zeros(batch["document_lengths"].numel()).index_add(
            0, answer_BS.flatten(), each_BS.flatten()
        )
        context = parallel_state.get_context_parallel_group()
        if context.size() > 1:
            torch.distributed.all_reduce(mean_K, group=context)
        loss, grad_K = self.how.loss_and_gradient(mean_K)
        first = int(context.rank() == 0)  # of the ranks that share the preference: it counts once
        once = torch.full((), first, dtype=torch.int, device=loss.device)
        d = advantage(mean_K)
        self.sums.add(preferences=once, preference_loss=once * loss, advantage=once * d, preferred=once * (d > 0))
        chosen_BS = batch["loss_mask"] * (batch["documents"] == 0)
        logged = torch.stack([(loss_BS.detach() * chosen_BS).sum(), chosen_BS.sum()])
        return (loss_BS * -grad_K[answer_BS] * share_BS).sum(), once, {"loss_sum_and_ub_size": logged}
