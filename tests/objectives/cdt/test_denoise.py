"""Eq. 2 and 3 on numbers small enough to do by hand."""

import math

import pytest
import torch

from nemo_cdt.objectives.cdt import Normalization
from nemo_cdt.objectives.cdt.denoise import Denoising, Segments, noise_mask, scores, shift, shift_statistics, thresholds

GRAD_SBH = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 1.0], [0.0, 0.0]])[:, None]
EMBEDDING_SBH = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0], [1.0, 1.0]])[:, None]


def segments(index: list[int], real: list[bool], count: list[float]) -> Segments:
    return Segments(
        index_SB=torch.tensor(index)[:, None],
        real_SB=torch.tensor(real)[:, None],
        count_N=torch.tensor(count, dtype=torch.float64),
    )


ONE = segments([0, 0, 0, 1], [True, True, True, False], [3.0])
"""One document of three tokens, and padding that belongs to no segment."""


def alone(_: torch.Tensor) -> None: ...


def denoised(how: Denoising, step_size: float = 0.1) -> torch.Tensor:
    score_SB = scores(GRAD_SBH)
    noise_SB = noise_mask(score_SB, thresholds(score_SB, ONE, alone), ONE)
    return shift(GRAD_SBH, score_SB, noise_SB, EMBEDDING_SBH, step_size, how)[:, 0]


def test_the_threshold_is_the_mean_over_real_tokens() -> None:
    assert thresholds(scores(GRAD_SBH), ONE, alone).tolist() == pytest.approx([(5 + 0.5 + 1) / 3])


def test_a_row_threshold_counts_padding() -> None:
    row = segments([0, 0, 0, 0], [True, True, True, False], [4.0])
    assert thresholds(scores(GRAD_SBH), row, alone).tolist() == pytest.approx([(5 + 0.5 + 1) / 4])


def test_each_document_has_its_own_threshold() -> None:
    two = segments([0, 0, 1, 2], [True, True, True, False], [2.0, 1.0])
    assert thresholds(scores(GRAD_SBH), two, alone).tolist() == pytest.approx([2.75, 1.0])


def test_noise_lies_below_the_threshold_and_padding_is_none() -> None:
    score_SB = scores(GRAD_SBH)
    mask = noise_mask(score_SB, thresholds(score_SB, ONE, alone), ONE)
    assert mask[:, 0].tolist() == [False, True, True, False]


def test_a_score_on_the_threshold_is_no_noise() -> None:
    score_SB = torch.tensor([[2.0], [2.0], [2.0], [0.0]])
    assert not noise_mask(score_SB, thresholds(score_SB, ONE, alone), ONE).any()


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (Denoising(), [[0, 0], [-0.03, -0.04], [0, -0.1], [0, 0]]),
        (
            Denoising(normalization=Normalization.epsilon, epsilon=0.3),
            [[0, 0], [-0.3 * 0.3 / 1.5, -0.3 * 0.4 / 1.5], [0, -0.3 / 2], [0, 0]],
        ),
        (
            Denoising(normalization=Normalization.relative, rho=0.5),
            [[0, 0], [-0.5 * 2 * 0.6, -0.5 * 2 * 0.8], [0, -0.5 * 5], [0, 0]],
        ),
    ],
)
def test_the_shift_is_that_of_its_equation(how: Denoising, expected: list[list[float]]) -> None:
    torch.testing.assert_close(denoised(how), torch.tensor(expected, dtype=torch.float32))


def test_a_relative_shift_of_a_zero_gradient_is_zero() -> None:
    zero = torch.zeros(1, 1, 2)
    moved = shift(zero, scores(zero), torch.ones(1, 1, dtype=torch.bool), EMBEDDING_SBH[:1], 1.0,
                  Denoising(normalization=Normalization.relative))  # fmt: skip
    assert moved.tolist() == [[[0.0, 0.0]]]


def test_strength_tells_what_bf16_rounds_away() -> None:
    delta = torch.full((4, 1, 2), 1e-6)
    noise, real = torch.ones(4, 1, dtype=torch.bool), torch.ones(4, 1, dtype=torch.bool)
    in_fp32 = shift_statistics(EMBEDDING_SBH + 1, delta, noise, real)
    in_bf16 = shift_statistics((EMBEDDING_SBH + 1).bfloat16(), delta, noise, real)
    assert (in_fp32.changed.item(), in_bf16.changed.item()) == (8, 0)
    assert in_fp32.relative_shift.item() == pytest.approx(
        sum(math.sqrt(2) * 1e-6 / row.norm().item() for row in (EMBEDDING_SBH + 1)[:, 0]), rel=1e-5
    )
