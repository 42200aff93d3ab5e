"""LongPPL's key tokens against one forward pass for each token, as its definition reads."""

import numpy as np
import pytest
import torch

from nemo_cdt.config import KeyTokenRule
from nemo_cdt.evaluation.longppl import KeyTokens, key_tokens
from tests.analysis.models import VOCABULARY, eager, watched

TOKENS = 30
INPUT_IDS = np.random.default_rng(3).integers(VOCABULARY, size=TOKENS)


def found_by(rule: KeyTokenRule) -> KeyTokens:
    return key_tokens(watched("llama").log_probabilities, INPUT_IDS, rule, torch.device("cpu"))


def log_p(model, ids, start: int, at: int) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.as_tensor(ids[None, start:at])).logits[0, -1]
    return logits.log_softmax(-1)[ids[at]].item()


def gains(settings: KeyTokenRule, late: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(gain, log-probability) of each token. ``late``: by how much the short context starts too late."""
    model, ids = eager("llama"), INPUT_IDS
    whole, gain = np.zeros(TOKENS), np.zeros(TOKENS)
    for at in range(1, TOKENS):
        whole[at] = log_p(model, ids, 0, at)
        if at >= settings.context:
            start = (at - settings.context) // settings.window * settings.window
            gain[at] = whole[at] - log_p(model, ids, start + late, at)
    return gain, whole


@pytest.mark.parametrize(("context", "window", "batch"), [(8, 4, 3), (9, 5, 1), (16, 7, 8)])
def test_windows_in_batches_are_one_pass_for_each_token(context, window, batch):
    settings = KeyTokenRule(context=context, window=window, batch=batch, alpha=0.5, beta=-6.0)
    found = found_by(settings)
    gain, whole = gains(settings)

    np.testing.assert_allclose(found.gain_N, gain, atol=1e-4)
    np.testing.assert_allclose(found.log_p_N, whole, atol=1e-4)
    np.testing.assert_array_equal(found.key_N, (gain > 0.5) & (whole > -6.0))
    assert 0 < found.key_N.sum() < TOKENS / 2


def test_a_context_that_starts_one_token_late_is_noticed():
    settings = KeyTokenRule(context=8, window=4, batch=3)
    wrong, _ = gains(settings, late=1)

    assert np.abs(found_by(settings).gain_N - wrong).max() > 1e-2


def test_a_sample_that_is_no_longer_than_the_context_has_no_key_token():
    found = found_by(KeyTokenRule(context=TOKENS))

    assert not found.key_N.any()
    assert not found.gain_N.any()
