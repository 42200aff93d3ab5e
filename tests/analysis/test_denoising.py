"""Denoising by hand, and a training step on its input, against the equations written out."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from nemo_cdt.analysis.denoising import (
    BEFORE,
    DENOISED,
    TRAINED,
    Setting,
    effects,
    noise_tokens,
    settings_of,
    shift_by_hand,
    trained,
)
from nemo_cdt.analysis.denoising_report import begins, breaks_at, report, summarise
from nemo_cdt.analysis.estimate import estimate
from nemo_cdt.analysis.observe import observe
from nemo_cdt.analysis.samples import CRITICAL
from nemo_cdt.analysis.settings import Denoise, NoiseBy, Optimizer
from nemo_cdt.config import Precision
from nemo_cdt.objectives.cdt import Normalization
from tests.analysis.models import eager, textbook, watched
from tests.analysis.test_flow import TOP_K, relative, sample


def setting(strength: float, kind: Normalization = Normalization.gradient) -> Setting:
    return Setting(precision=Precision.fp32, normalization=kind, strength=strength)


def tensors():
    one = sample()
    return torch.as_tensor(one.input_ids), torch.as_tensor(one.rows), torch.as_tensor(one.answer)


@pytest.fixture(scope="module")
def observed():
    analyzed = watched("llama")
    return analyzed, *observe(analyzed, sample(), TOP_K)


@pytest.mark.parametrize("kind", [Normalization.gradient, Normalization.relative])
def test_noise_tokens_move_against_their_gradient(observed, kind):
    analyzed, observation, grad_ND = observed
    _, _, expected_ND, _ = textbook("llama", *tensors())
    norm_N, embedding_ND = expected_ND.norm(dim=-1), eager("llama").get_input_embeddings()(tensors()[0]).detach()
    step_N = (
        torch.full_like(norm_N, 0.01) if kind is Normalization.gradient else 0.01 * embedding_ND.norm(dim=-1) / norm_N
    )
    expected = -(step_N * (norm_N < norm_N.mean()))[:, None] * expected_ND
    found = shift_by_hand(analyzed, observation, grad_ND, setting(0.01, kind), NoiseBy.gradient)

    assert relative(found.numpy(), expected.numpy()) < 1e-5
    assert relative((-found).numpy(), expected.numpy()) > 1


def test_noise_is_what_was_asked_for(observed):
    _, observation, _ = observed
    types = sample().types

    assert noise_tokens(observation, NoiseBy.ig).tolist() == (observation.ig_N < observation.ig_N.mean()).tolist()
    assert noise_tokens(observation, NoiseBy.oracle).tolist() == [type not in CRITICAL for type in types]
    assert 0 < noise_tokens(observation, NoiseBy.gradient).sum() < len(types)


def expected_weights(optimizer: Optimizer, shift_ND: torch.Tensor, lr: float) -> dict[str, torch.Tensor]:
    model, (ids_N, rows_R, answer_R) = eager("llama"), tensors()
    model.requires_grad_(True)
    moved_ND = model.get_input_embeddings()(ids_N) + shift_ND
    cross_entropy(model(inputs_embeds=moved_ND[None]).logits[0, rows_R], answer_R).backward()
    with torch.no_grad():
        for weight in model.parameters():
            g = weight.grad
            weight -= lr * (g if optimizer is Optimizer.sgd else g / (g.abs() + 1e-8))  # Adam's first step
    return model.state_dict()


@pytest.mark.parametrize("optimizer", [Optimizer.sgd, Optimizer.adamw])
def test_a_training_step_is_on_the_denoised_input_and_is_undone(observed, optimizer):
    analyzed, observation, grad_ND = observed
    shift_ND = shift_by_hand(analyzed, observation, grad_ND, setting(10.0), NoiseBy.gradient)
    before = {name: weight.clone() for name, weight in analyzed.model.state_dict().items()}
    with trained(analyzed, sample(), shift_ND, Denoise(optimizer=optimizer, lr=1e-3)) as updated:
        found = {name: weight - before[name] for name, weight in analyzed.model.state_dict().items()}
    expected, plain = (expected_weights(optimizer, shift, 1e-3) for shift in (shift_ND, torch.zeros_like(shift_ND)))

    def difference(weights) -> float:
        moved = {name: weights[name] - before[name] for name in before}
        return max(float((found[name] - moved[name]).norm() / moved[name].norm()) for name in before)

    assert difference(expected) < 1e-2  # Adam's first step is the sign of a gradient, which rounding may flip near 0
    assert difference(plain) > 0.1
    assert updated > 0.5
    assert all(torch.equal(weight, before[name]) for name, weight in analyzed.model.state_dict().items())
    assert not any(weight.requires_grad for weight in analyzed.model.parameters())


def test_the_model_is_restored_after_a_failure(observed):
    analyzed, _, grad_ND = observed
    before = [weight.clone() for weight in analyzed.model.parameters()]
    with pytest.raises(RuntimeError), trained(analyzed, sample(), torch.zeros_like(grad_ND), Denoise(lr=1.0)):
        raise RuntimeError

    assert all(torch.equal(*pair) for pair in zip(analyzed.model.parameters(), before, strict=True))


@pytest.fixture(scope="module")
def found(observed):
    settings = Denoise(
        strengths=[1e-9, 1e-3, 1e4], rhos=[1e-2], dtypes=[Precision.fp32], optimizer=Optimizer.sgd, lr=1e-2
    )
    return settings, list(
        chain(*effects(observed[0], sample(), settings_of(Precision.fp32, settings), settings, TOP_K))
    )


def test_every_strength_is_measured_before_after_and_after_training(found):
    _, all_effects = found
    stages = [one.stage for one in all_effects]

    assert (stages.count(BEFORE), stages.count(DENOISED), stages.count(TRAINED)) == (1, 4, 5)
    (plain,) = [one for one in all_effects if one.stage == TRAINED and one.setting.strength == 0]
    (weak,) = [one for one in all_effects if one.stage == TRAINED and one.setting.strength == 1e-9]
    assert weak.loss == pytest.approx(plain.loss, rel=1e-5)
    assert plain.loss < all_effects[0].loss


def test_a_curve_is_after_over_before(found):
    settings, all_effects = found
    curve = {s: summarise(all_effects, Precision.fp32, Normalization.gradient, s, DENOISED) for s in settings.strengths}
    (before,), (strong,) = (
        [one for one in all_effects if one.stage == stage and one.setting.strength in (0, 1e4)]
        for stage in (BEFORE, DENOISED)
    )

    assert curve[1e4].loss.mean == pytest.approx(strong.loss / before.loss)
    for type in CRITICAL:
        assert curve[1e-9].attention[type].mean == pytest.approx(1, abs=1e-5)
        assert curve[1e4].attention[type].mean == pytest.approx(strong.attention[type] / before.attention[type])
        assert curve[1e4].ig[type].mean == pytest.approx(strong.ig[type] / before.ig[type])


def test_a_reader_sees_where_it_acts_and_where_it_breaks(found):
    _, all_effects = found
    weak = summarise(all_effects, Precision.fp32, Normalization.gradient, 1e-9, DENOISED)
    acting = replace(weak, attention=weak.attention | {CRITICAL[0]: estimate([0.98])}, loss=estimate([0.9]))
    broken = replace(acting, loss=estimate([1.02]))
    weak = replace(weak, loss=estimate([1.001]))

    assert (begins({1.0: weak, 2.0: acting, 3.0: broken}), breaks_at({1.0: weak, 2.0: acting, 3.0: broken})) == (
        2.0,
        3.0,
    )
    assert (begins({1.0: weak}), breaks_at({1.0: weak, 2.0: acting})) == (None, None)


def test_a_report_has_a_table_and_a_picture_of_each_way_and_stage(found):
    settings, all_effects = found
    result = report(all_effects, settings)

    assert [len(table.rows) for table in result.tables] == [3, 4, 1, 2]
    assert {drawing.name for drawing in result.drawings} == {
        f"{stage}_{kind}" for stage in (DENOISED, TRAINED) for kind in ("gradient", "relative")
    }
    assert sum("from which it acts in fp32" in name for _, name in result.headline) == 2


def test_a_weak_shift_rounds_away_in_bf16():
    analyzed = watched("llama")
    analyzed.model.to(torch.bfloat16)
    settings = Denoise(strengths=[1e-9], rhos=[0.1], dtypes=[Precision.bf16], optimizer=Optimizer.none)
    (_,), (weak,), (strong,) = effects(analyzed, sample(), settings_of(Precision.bf16, settings), settings, TOP_K)

    assert weak.changed == 0
    assert 0.1 < strong.changed < 1


def test_wrong_and_right_answers_are_apart(found):
    _, all_effects = found
    result = report(all_effects, found[0])
    groups = result.numbers["fp32"]["gradient"][DENOISED]

    assert not all_effects[0].correct
    assert groups["wrong"] == groups["all"]
    assert all(row["loss"]["samples"] == 0 for row in groups["correct"])
    assert np.isfinite(groups["all"][0]["loss"]["mean"])
