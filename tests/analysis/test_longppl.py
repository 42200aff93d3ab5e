"""LongPPL's key tokens against one forward pass for each token, as its definition reads."""

import numpy as np
import pytest
import torch

from nemo_cdt.analysis.longppl import key_tokens, longppl
from nemo_cdt.analysis.observe import observe
from nemo_cdt.analysis.samples import Sample
from nemo_cdt.analysis.settings import LongPPL
from tests.analysis.models import VOCABULARY, eager, watched

TOKENS = 30


def sample() -> Sample:
    ids = np.random.default_rng(3).integers(VOCABULARY, size=TOKENS)
    return Sample(where="", input_ids=ids, types=np.zeros(TOKENS, int), rows=np.array([5]), answer=ids[6:7])


def log_p(model, ids, start: int, at: int) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.as_tensor(ids[None, start:at])).logits[0, -1]
    return logits.log_softmax(-1)[ids[at]].item()


def gains(settings: LongPPL, late: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(gain, log-probability) of each token. ``late``: by how much the short context starts too late."""
    model, ids = eager("llama"), sample().input_ids
    whole, gain = np.zeros(TOKENS), np.zeros(TOKENS)
    for at in range(1, TOKENS):
        whole[at] = log_p(model, ids, 0, at)
        if at >= settings.context:
            start = (at - settings.context) // settings.window * settings.window
            gain[at] = whole[at] - log_p(model, ids, start + late, at)
    return gain, whole


@pytest.mark.parametrize(("context", "window", "batch"), [(8, 4, 3), (9, 5, 1), (16, 7, 8)])
def test_windows_in_batches_are_one_pass_for_each_token(context, window, batch):
    settings = LongPPL(context=context, window=window, batch=batch, alpha=0.5, beta=-6.0)
    found = key_tokens(watched("llama"), sample(), settings)
    gain, whole = gains(settings)

    np.testing.assert_allclose(found.gain_N, gain, atol=1e-4)
    np.testing.assert_allclose(found.log_p_N, whole, atol=1e-4)
    np.testing.assert_array_equal(found.key_N, (gain > 0.5) & (whole > -6.0))
    assert 0 < found.key_N.sum() < TOKENS / 2


def test_a_context_that_starts_one_token_late_is_noticed():
    settings = LongPPL(context=8, window=4, batch=3)
    wrong, _ = gains(settings, late=1)

    assert np.abs(key_tokens(watched("llama"), sample(), settings).gain_N - wrong).max() > 1e-2


def test_a_sample_that_is_no_longer_than_the_context_has_no_key_token():
    found = key_tokens(watched("llama"), sample(), LongPPL(context=TOKENS))

    assert not found.key_N.any()
    assert not found.gain_N.any()


def test_without_a_key_token_words_stand_for_the_picture():
    analyzed, observations = watched("llama"), [observe(watched("llama"), sample(), 3)[0]]
    none = longppl(analyzed, observations, LongPPL(context=8, window=4, alpha=99.0))
    some = longppl(analyzed, observations, LongPPL(context=8, window=4, alpha=-9.0, beta=-99.0))

    assert (len(none.drawings), len(some.drawings)) == (0, 1)
    assert "No token of any sample is a key token" in none.notices[0]
    assert "longppl.alpha=99 and longppl.beta=-2" in none.notices[0]
    assert some.notices == []


def test_a_head_that_is_no_plain_linear_layer_is_one_line():
    analyzed = watched("llama")
    analyzed.model.lm_head.register_forward_hook(lambda module, given, out: out + given[0].sum() * 0 + out.mean() + 1)
    analyzed.require_plain_head()  # a hook is a part of the head
    analyzed.model.register_forward_hook(lambda module, given, out: setattr(out, "logits", 2 * out.logits + 1))

    with pytest.raises(ValueError, match="LlamaForCausalLM scales or caps its logits"):
        analyzed.require_plain_head()
