"""Ways to get CDT wrong. Each function breaks one thing, in a process of its own, for a test that must notice."""

from contextlib import contextmanager


def sign_flipped() -> None:
    from nemo_cdt import denoise

    right = denoise.shift
    denoise.shift = lambda *arguments: -right(*arguments)


def mask_inverted() -> None:
    from nemo_cdt import denoise

    right = denoise.noise_mask
    denoise.noise_mask = lambda score, threshold, segments: ~right(score, threshold, segments) & segments.real_SB


def freezing_forgotten() -> None:
    from nemo_cdt.megatron import schedule

    @contextmanager
    def not_frozen(chunks):
        yield

    schedule.frozen = not_frozen


def divided_by_num_microbatches() -> None:
    from megatron.core.num_microbatches_calculator import get_num_microbatches

    from nemo_cdt import denoise

    right = denoise.shift
    denoise.shift = lambda grad, *rest: right(grad / get_num_microbatches(), *rest)


def padding_counted() -> None:
    from nemo_cdt.config import ThresholdScope
    from nemo_cdt.megatron.microbatch import MicroBatch

    right = MicroBatch.segments
    MicroBatch.segments = lambda batch, scope: right(batch, ThresholdScope.row)
