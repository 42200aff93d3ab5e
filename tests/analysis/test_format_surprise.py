import numpy as np
import pytest
import torch

from nemo_cdt.analysis.format_surprise import WRITTEN, format_notice
from nemo_cdt.analysis.samples import Sample
from nemo_cdt.data.tokenizer import byte_tokenizer
from nemo_cdt.evaluation.answers import greedy
from tests.analysis.models import eager, watched

IDS = np.arange(40, 60)


def sample(answer):
    """The first four tokens ask; the rest is fed as the answer's."""
    return Sample(where="row 3", input_ids=IDS, types=np.zeros(20, int), rows=np.array([3]), answer=np.array(answer))


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_what_greedy_decoding_writes_is_transformers_generate(name):
    prompt = torch.as_tensor(IDS[None, :4])
    expected = eager(name).generate(prompt, max_new_tokens=WRITTEN // 2 + 1, do_sample=False, pad_token_id=0)[0, 4:]

    assert greedy(watched(name).model, sample([7]).prompt, WRITTEN // 2 + 1) == expected.tolist()


def test_what_a_folder_asks_of_generation_changes_nothing():
    model, prompt = eager("llama"), IDS[:4].tolist()
    expected = greedy(model, prompt, 12)
    model.generation_config.suppress_tokens = expected[:1]
    theirs = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)[0, 4:]

    assert theirs.tolist() != expected
    assert greedy(model, prompt, 12) == expected


def test_the_notice_shows_what_is_written_and_what_was_to_be():
    analyzed = watched("llama")
    written = greedy(analyzed.model, sample([72, 105]).prompt, WRITTEN // 2 + 2)

    told = format_notice(analyzed, [sample([72, 105])] * 5, byte_tokenizer())
    without = format_notice(analyzed, [sample([72, 105])] * 5, None)

    assert told.startswith("None of the 5 answers is what greedy decoding writes (to row 3 it writes ")
    assert 'the answer is "Hi")' in told
    assert f"it writes the tokens {written}, and the answer is the tokens [72, 105])" in without
    assert "\n" not in told
