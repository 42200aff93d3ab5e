"""A batch of questions of unequal length is each of them alone, by plain autograd."""

import numpy as np
import pytest
import torch

from nemo_cdt.analysis.samples import Sample
from nemo_cdt.evaluation.questions import answered, judgement
from tests.analysis.models import VOCABULARY, eager

MODEL = eager("llama").requires_grad_(False)


def question(tokens: int, seed: int) -> Sample:
    random = np.random.default_rng(seed)
    ids = random.integers(VOCABULARY, size=tokens + 1)
    rows = np.arange(tokens - 2, tokens)
    return Sample(where="", input_ids=ids[:-1], types=random.integers(6, size=tokens), rows=rows, answer=ids[rows + 1])


QUESTIONS = [question(tokens, seed) for seed, tokens in enumerate([12, 20, 15])]


def test_padding_changes_no_answer():
    for found, one in zip(answered(MODEL, QUESTIONS), QUESTIONS, strict=True):
        embedding = MODEL.get_input_embeddings()(torch.tensor(one.input_ids)).detach()[None].requires_grad_(True)
        log_p = MODEL(inputs_embeds=embedding).logits[0].log_softmax(-1)
        loss = -log_p[one.rows, one.answer].mean()
        (gradient,) = torch.autograd.grad(loss, embedding)

        assert found.loss == pytest.approx(loss.item(), rel=1e-5)
        assert found.right == (log_p[one.rows].argmax(-1).numpy() == one.answer).all()
        np.testing.assert_allclose(found.score_N, gradient[0].norm(dim=-1).numpy(), rtol=1e-4)


def test_how_many_are_asked_at_a_time_changes_nothing():
    assert judgement(MODEL, QUESTIONS, 2) == pytest.approx(judgement(MODEL, QUESTIONS, 3), rel=1e-5)
