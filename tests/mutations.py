"""Ways to get CDT wrong. Each function breaks one thing, in a process of its own, for a test that must notice."""

from contextlib import contextmanager


def sign_flipped() -> None:
    from nemo_cdt.objectives.cdt import denoise

    right = denoise.shift
    denoise.shift = lambda *arguments: -right(*arguments)


def mask_inverted() -> None:
    from nemo_cdt.objectives.cdt import denoise

    right = denoise.noise_mask
    denoise.noise_mask = lambda score, threshold, segments: ~right(score, threshold, segments) & segments.real_SB


def freezing_forgotten() -> None:
    from nemo_cdt.objectives.cdt import schedule

    @contextmanager
    def not_frozen(chunks):
        yield

    schedule.frozen = not_frozen


def detection_draws_for_itself() -> None:
    from contextlib import nullcontext

    from nemo_cdt.objectives.cdt import schedule

    schedule._fork_rng = nullcontext


def ranks_draw_their_own() -> None:
    import torch

    from nemo_cdt.nemo import strategy

    right = strategy.model_parallel_cuda_manual_seed

    def seeded(seed: int) -> None:
        right(seed)
        torch.manual_seed(seed + torch.distributed.get_rank())

    strategy.model_parallel_cuda_manual_seed = seeded


def adapters_unseen_by_detection() -> None:
    from nemo.collections.llm.peft.lora import LoRALinear

    right = LoRALinear.forward

    def forward(wrapped, x):
        trains = wrapped.adapter.linear_in.weight.requires_grad
        return right(wrapped, x) if trains else wrapped.base_linear_forward(x)[:2]

    LoRALinear.forward = forward


def no_gradient_wanted_below() -> None:
    from nemo_cdt.nemo import lora

    lora._wanting_a_gradient = lambda *_: None


def divided_by_num_microbatches() -> None:
    from megatron.core.num_microbatches_calculator import get_num_microbatches

    from nemo_cdt.objectives.cdt import denoise

    right = denoise.shift
    denoise.shift = lambda grad, *rest: right(grad / get_num_microbatches(), *rest)


def padding_counted() -> None:
    from nemo_cdt.objectives.cdt import ThresholdScope, detection

    right = detection.segments_of
    detection.segments_of = lambda batch, scope: right(batch, ThresholdScope.row)


def threshold_all_reduce_dropped() -> None:
    from nemo_cdt.megatron.groups import Groups

    Groups.all_reduce = lambda groups, tensor: None


def label_counts_of_one_rank() -> None:
    from nemo_cdt.megatron.microbatch import MicroBatch

    right = MicroBatch.for_detection

    def for_detection(batch: MicroBatch) -> MicroBatch:
        wrong = right(batch)
        labels = batch["loss_mask"].sum(dim=1, keepdim=True)
        wrong["loss_mask"] = batch["loss_mask"] / labels.clamp(min=1)
        return wrong

    MicroBatch.for_detection = for_detection


def boundaries_ignored() -> None:
    from nemo_cdt.megatron.microbatch import MicroBatch

    MicroBatch.packed = lambda batch: None


def zigzag_ignored() -> None:
    import torch

    from nemo_cdt.megatron import microbatch

    def in_order(cu_seqlens: list[int], cp_size: int, cp_rank: int) -> torch.Tensor:
        share = cu_seqlens[-1] // cp_size
        return torch.arange(cp_rank * share, (cp_rank + 1) * share)

    microbatch.row_positions = in_order


def weights_not_clamped() -> None:
    from nemo_cdt.objectives.longce import weights as longce

    right = longce.weights
    longce.weights = lambda short, full, gamma: right(short, full, float("inf"))


def weights_renormalised() -> None:
    from nemo_cdt.objectives.longce import weights as longce

    right = longce.weights

    def weights(short, full, gamma):
        weight, known = right(short, full, gamma), short != longce.UNMEASURED
        return weight / weight[known].mean()

    longce.weights = weights


def window_begins_one_late() -> None:
    from dataclasses import replace

    from nemo_cdt.objectives.longce import weights as longce

    right = longce.windows
    longce.windows = lambda fed, **how: (replace(found, start=found.start + 1) for found in right(fed, **how))


def weights_with_a_gradient() -> None:
    from nemo_cdt.objectives.longce import weights as longce

    def weighted(loss, weight):
        moving = weight * (loss.detach() - loss).exp() * loss
        return loss.detach() + moving - moving.detach()

    longce.weighted = weighted


def weights_in_detection() -> None:
    from nemo_cdt.megatron.microbatch import MicroBatch
    from nemo_cdt.objectives.longce.schedule import SHORT_LOSS

    right = MicroBatch.for_detection

    def for_detection(batch: MicroBatch) -> MicroBatch:
        wrong = right(batch)
        wrong[SHORT_LOSS] = batch[SHORT_LOSS]
        return wrong

    MicroBatch.for_detection = for_detection


def windows_of_one_rank() -> None:
    import torch

    right = torch.distributed.all_reduce

    def all_reduce(tensor, op=torch.distributed.ReduceOp.SUM, **rest):
        if op != torch.distributed.ReduceOp.MAX:
            return right(tensor, op=op, **rest)

    from nemo_cdt.objectives.longce import schedule as windows

    windows.torch.distributed.all_reduce = all_reduce


def windows_across_documents() -> None:
    from nemo_cdt.objectives.longce import schedule as windows

    right = windows.cut_rows

    def cut_rows(batch, rows, window, internal):
        whole = rows | {"document_lengths": rows["document_lengths"].sum(dim=1, keepdim=True)}
        return right(batch, whole, window, internal)

    windows.cut_rows = cut_rows


def answers_of_one_rank() -> None:
    from types import SimpleNamespace

    from nemo_cdt.objectives.logo import schedule as preferences

    state = preferences.parallel_state
    alone = SimpleNamespace(size=lambda: 1, rank=lambda: state.get_context_parallel_rank())
    preferences.parallel_state = SimpleNamespace(get_context_parallel_group=lambda: alone)


def preferences_counted_by_every_rank() -> None:
    from nemo_cdt.objectives.logo.schedule import LogoSchedule

    right = LogoSchedule._loss

    def loss(schedule, loss_BS, batch):
        value, once, logged = right(schedule, loss_BS, batch)
        return value, once * 0 + 1, logged

    LogoSchedule._loss = loss


def answers_summed() -> None:
    from nemo_cdt.objectives.logo.schedule import LogoSchedule

    right = LogoSchedule._loss
    LogoSchedule._loss = lambda schedule, loss, batch: right(
        schedule, loss, type(batch)(batch | {"label_share": batch["loss_mask"]}, row_length=0, longest=0)
    )


def disk_is_full() -> None:
    import shutil

    right = shutil.disk_usage
    shutil.disk_usage = lambda path: right(path)._replace(free=1 << 20)


def documents_weigh_the_same() -> None:
    from nemo_cdt.objectives.cdt.detection import Detector

    def record_loss(detector, loss_BS, batch):
        share_BS = batch["label_share"].detach()
        detector.sums.add(detection_loss=(loss_BS.detach() * share_BS).sum(), labels=share_BS.sum())

    Detector.record_loss = record_loss


def padding_is_tokens() -> None:
    from nemo_cdt.nemo.callback import StepMetrics

    right = StepMetrics.on_megatron_microbatch_start

    def on_megatron_microbatch_start(metrics, step, batch):
        right(metrics, step, batch)
        metrics._fed._tokens = metrics._fed._positions

    StepMetrics.on_megatron_microbatch_start = on_megatron_microbatch_start


def nan_is_a_number() -> None:
    from nemo_cdt.nemo import saving

    saving.TrainingLoop._not_finite = lambda loop: []
    saving.norm_of_weights = lambda trainer: 0.0
