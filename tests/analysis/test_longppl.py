"""What a reader sees of LongPPL's key tokens, and which model can be asked for them."""

import numpy as np
import pytest

from nemo_cdt.analysis.longppl import longppl
from nemo_cdt.analysis.observe import observe
from nemo_cdt.analysis.samples import Sample
from nemo_cdt.config import KeyTokenRule
from tests.analysis.models import VOCABULARY, watched

TOKENS = 30


def sample() -> Sample:
    ids = np.random.default_rng(3).integers(VOCABULARY, size=TOKENS)
    return Sample(where="", input_ids=ids, types=np.zeros(TOKENS, int), rows=np.array([5]), answer=ids[6:7])


def test_without_a_key_token_words_stand_for_the_picture():
    analyzed, observations = watched("llama"), [observe(watched("llama"), sample(), 3)[0]]
    none = longppl(analyzed, observations, KeyTokenRule(context=8, window=4, alpha=99.0))
    some = longppl(analyzed, observations, KeyTokenRule(context=8, window=4, alpha=-9.0, beta=-99.0))

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
