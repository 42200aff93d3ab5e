"""Where denoising begins to act, and where it breaks (Figures 4 and 8).

Noise tokens' embeddings are moved by hand against their gradient, as in training; attention, information flow and loss
are measured before, after, and once more after one optimizer step on the moved input, by the unmoved one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nemo_cdt.analysis.analyzed_model import AnalyzedModel
from nemo_cdt.analysis.groups import heads_by_type
from nemo_cdt.analysis.observe import Observation, observe
from nemo_cdt.analysis.samples import CRITICAL, Sample
from nemo_cdt.analysis.settings import Denoise, NoiseBy, Optimizer
from nemo_cdt.config import Precision
from nemo_cdt.data.documents import TokenType
from nemo_cdt.objectives.cdt.denoise import Denoising, scores, shift
from nemo_cdt.objectives.cdt.settings import Normalization

BEFORE, DENOISED, TRAINED = "before", "denoised", "trained"


@dataclass(kw_only=True, slots=True)
class Setting:
    """``strength``: lr * beta of the gradient normalization, rho of the relative one; 0 denoises nothing."""

    precision: Precision
    normalization: Normalization
    strength: float


@dataclass(kw_only=True, slots=True)
class Effect:
    """Of one sample under one setting, at one stage.

    changed: share of the embedding's elements that denoising moved.  updated: share of weights that training changed.
    attention, ig: of a token of each type.
    """

    sample: str
    setting: Setting
    stage: str
    attention: dict[TokenType, float]
    ig: dict[TokenType, float]
    loss: float
    correct: bool
    changed: float
    updated: float


def shift_by_hand(
    analyzed: AnalyzedModel, observation: Observation, grad_ND: Tensor, setting: Setting, noise: NoiseBy
) -> Tensor:
    """E' - E, fp32 [N, D]: :mod:`nemo_cdt.objectives.cdt.denoise`'s shift, on the noise tokens that ``noise`` names."""
    grad_SBH, embedding_SBH = grad_ND[:, None], analyzed.embed(observation.sample.input_ids)[:, None]
    noise_N = torch.as_tensor(noise_tokens(observation, noise), device=grad_ND.device)
    how = Denoising(normalization=setting.normalization, rho=setting.strength)
    return shift(grad_SBH, scores(grad_SBH), noise_N[:, None], embedding_SBH, setting.strength, how)[:, 0]


def noise_tokens(observation: Observation, by: NoiseBy) -> np.ndarray:
    """bool [N]."""
    if by is NoiseBy.oracle:
        return ~observation.sample.of(*CRITICAL)
    score_N = observation.gradient_N if by is NoiseBy.gradient else observation.ig_N
    return score_N < score_N.mean()


@contextmanager
def trained(analyzed: AnalyzedModel, sample: Sample, shift_ND: Tensor, settings: Denoise) -> Iterator[float]:
    """The model after one step on the denoised sample (Eq. 4), all weights unfrozen; inside the block only.

    Yields the share of weights that the step changed: in bf16 a small one rounds away.
    """
    weights = list(analyzed.model.parameters())
    kept = [weight.detach().to("cpu", copy=True) for weight in weights]
    optimizer: torch.optim.Optimizer
    try:
        analyzed.model.requires_grad_(True)
        if settings.optimizer is Optimizer.sgd:
            optimizer = torch.optim.SGD(weights, lr=settings.lr)
        else:
            optimizer = torch.optim.AdamW(weights, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0)
        ids_N, rows_R, answer_R = (
            torch.as_tensor(values, device=analyzed.device) for values in (sample.input_ids, sample.rows, sample.answer)
        )
        embedding: nn.Module = analyzed.model.get_input_embeddings()
        live_ND = embedding(ids_N)  # the table learns too
        moved_ND = live_ND + shift_ND.to(live_ND.dtype)
        cross_entropy(analyzed.logits(moved_ND, rows_R), answer_R).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        analyzed.model.requires_grad_(False)
        moved = sum(int((now.cpu() != before).sum()) for now, before in zip(weights, kept, strict=True))
        yield moved / sum(before.numel() for before in kept)
    finally:
        analyzed.model.requires_grad_(False)
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.grad = None
                weight.copy_(before)


def effects(
    analyzed: AnalyzedModel, sample: Sample, asked: Sequence[Setting], settings: Denoise, top_k: int
) -> Iterator[list[Effect]]:
    """Of one sample: before and, for each setting that is ``asked``, after denoising and after training.

    ``trained`` at strength 0 is plain training: what a step does without denoising.
    """
    before, grad_ND = observe(analyzed, sample, top_k)
    found = [_effect(asked[0], BEFORE, before, 0.0)]
    for setting in asked:
        shift_ND = shift_by_hand(analyzed, before, grad_ND, setting, settings.noise)
        changed = _changed(analyzed.embed(sample.input_ids), shift_ND)
        if setting.strength:
            found.append(_effect(setting, DENOISED, observe(analyzed, sample, top_k, shift_ND)[0], changed))
        if settings.optimizer is not Optimizer.none:
            with trained(analyzed, sample, shift_ND, settings) as updated:
                found.append(_effect(setting, TRAINED, observe(analyzed, sample, top_k)[0], changed, updated))
        yield found
        found = []


def settings_of(precision: Precision, settings: Denoise) -> list[Setting]:
    """Strength 0 first."""
    kinds = [(Normalization.gradient, settings.strengths), (Normalization.relative, settings.rhos)]
    plain = Setting(precision=precision, normalization=Normalization.gradient, strength=0.0)
    return [plain] + [
        Setting(precision=precision, normalization=kind, strength=strength)
        for kind, strengths in kinds
        for strength in strengths
    ]


def _changed(embedding_ND: Tensor, shift_ND: Tensor) -> float:
    moved_ND = embedding_ND + shift_ND.to(embedding_ND.dtype)
    return float((moved_ND != embedding_ND).double().mean())


def _effect(setting: Setting, stage: str, one: Observation, changed: float, updated: float = 0.0) -> Effect:
    return Effect(
        sample=one.sample.where,
        setting=setting,
        stage=stage,
        attention=heads_by_type(one.attention_LHT),
        ig=heads_by_type(one.ig_LHT),
        loss=one.loss,
        correct=one.correct,
        changed=changed,
        updated=updated,
    )
