"""The learning rate of a step, as NeMo's schedules have it: both front ends train with the same."""

import math

from nemo_cdt.config import Optim, Schedule


def learning_rate(optim: Optim, max_steps: int, step: int) -> float:
    """Of the step that comes after ``step`` others.

    Warm-up rises to ``optim.lr`` in ``warmup_steps`` steps and one more; a cosine then falls to ``min_lr`` at
    ``max_steps``.
    """
    warmup = optim.warmup_steps
    if warmup and step <= warmup:
        return optim.lr * (step + 1) / (warmup + 1)
    if optim.schedule is Schedule.constant:
        return optim.lr
    if step > max_steps:
        return optim.min_lr
    share = (step - warmup) / (max_steps - warmup)
    return (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * share)) + optim.min_lr
