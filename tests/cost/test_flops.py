from dataclasses import replace

import numpy as np
import pytest

from nemo_cdt.config import Config, Data, Recompute
from nemo_cdt.cost.flops import attended, floor, keys, useful, work
from nemo_cdt.objectives import objective_of
from tests.cost.models import LLAMA31_8B, LLAMA31_70B, MISTRAL_7B, QWEN3_8B
from tests.runs import settings_of

LENGTHS = [8192, 16384, 32768, 65536, 131072]
FULL, MLP = Recompute.full, Recompute.selective
LABELLED = {"labelled": 0.0}
DESIGN = {  # by hand, from FLOPs of Llama-3.1-8B: keywords of training, of detection; the ratio at LENGTHS
    "weight gradients in detection too": ({}, {"frozen": False}, [2.0, 2.0, 2.0, 2.0, 2.0]),
    "frozen": ({}, {}, [1.714, 1.750, 1.800, 1.857, 1.909]),
    "labelled rows in detection": ({}, LABELLED, [1.674, 1.715, 1.772, 1.837, 1.896]),
    "full recompute in both": ({"recompute": FULL}, {"recompute": FULL}, [1.781, 1.808, 1.846, 1.890, 1.930]),
    "full in training": ({"recompute": FULL} | LABELLED, LABELLED, [1.541, 1.571, 1.614, 1.661, 1.704]),
    "mlp in training": ({"recompute": MLP} | LABELLED, LABELLED, [1.584, 1.630, 1.697, 1.777, 1.854]),
}


@pytest.mark.parametrize("policy", DESIGN)
def test_the_floor_of_a_cdt_step_is_that_of_the_design(policy):
    training, detection, expected = DESIGN[policy]

    floors = [
        floor(work(LLAMA31_8B, length, **training), work(LLAMA31_8B, length, **({"frozen": True} | detection)))
        for length in LENGTHS
    ]

    assert floors == pytest.approx(expected, abs=6e-4)  # rounded to three digits


def test_the_floor_of_the_70b_model_is_that_of_the_design():
    floors = [floor(work(LLAMA31_70B, n), work(LLAMA31_70B, n, frozen=True)) for n in LENGTHS]

    assert floors == pytest.approx([1.694, 1.718, 1.755, 1.806, 1.863], abs=6e-4)


@pytest.mark.parametrize("length", LENGTHS)
def test_useful_flops_are_those_of_nemo(length):
    from nemo.utils.flops_formulas import FLOPSConfig, llama3

    model = LLAMA31_8B
    expected = llama3(
        FLOPSConfig(
            gbs=1,
            enc_seq_len=length,
            layers=model.num_layers,
            hs=model.hidden_size,
            ffn_hs=model.ffn_hidden_size,
            attention_heads=model.num_attention_heads,
            query_groups=model.num_query_groups,
        )
    )

    assert length * useful(model, length) == pytest.approx(expected, rel=1e-9)
    assert length * work(model, length).total > 1.01 * expected  # flash attention computes its scores again


def test_logits_made_twice_cost_one_more_head():
    once, twice = (work(LLAMA31_8B, 8192, frozen=True, head_recompute=again) for again in (False, True))

    assert (once.head, twice.head) == pytest.approx((2 * 1.0507e9, 3 * 1.0507e9), rel=1e-4)
    assert once.linears == twice.linears


def test_mlps_in_chunks_are_computed_once_more_where_layers_are_recomputed():
    mlp = work(LLAMA31_8B, 8192, MLP).linears - work(LLAMA31_8B, 8192).linears
    full, chunked = (work(LLAMA31_8B, 8192, FULL, mlp_recompute=again).linears for again in (False, True))

    assert mlp == chunked - full == pytest.approx(0.81 * 13.96e9, rel=0.01)


def test_windows_cost_the_forwards_that_they_are():
    """28 windows of 5,120 tokens at 32,768, 124 at 131,072 (method.md)."""
    for length, count in {32768: 28, 131072: 124}.items():
        config = Config(model=LLAMA31_8B, objective=settings_of("longce"), data=Data(seq_length=length))
        found = objective_of(config).cost(config)
        forwards = count * 5120 / length
        assert found.linears == pytest.approx(forwards * work(LLAMA31_8B, 1).linears / 3)
        assert found.attention_forward == pytest.approx(forwards * work(LLAMA31_8B, 5120).attention_forward)
        assert found.head == pytest.approx(count * 1024 / length * work(LLAMA31_8B, 1).head / 3)
    assert objective_of(Config()).cost(Config()) is None


@pytest.mark.parametrize("window", [1, 100, 1000, 5000, None])
def test_a_sliding_window_bounds_attention(window):
    model, length = replace(MISTRAL_7B, sliding_window=window), 1000
    expected = sum(min(position + 1, window or length) for position in range(length)) / length

    assert keys(model, length) == pytest.approx(expected, abs=0.5)  # half of the diagonal, as for all attention here
    attention = work(model, length).attention_forward
    assert attention == 32 * 4 * 4096 * keys(model, length)  # two products of two FLOPs each
    assert work(model, length).linears == work(MISTRAL_7B, length).linears


def test_heads_may_be_larger_or_smaller_than_their_share_of_the_hidden_size():
    whole, half = (work(replace(QWEN3_8B, head_dim=size), 8192) for size in (128, 64))

    assert half.attention_forward == whole.attention_forward / 2
    assert whole.linears - half.linears == 3 * 2 * 36 * 2 * 4096 * (4096 + 1024) / 2


def test_attention_of_packed_documents_spans_a_document_of_the_alignment_sets_lengths():
    packed = Data(seq_length=32768, document_length=4096, pack=True)
    rng = np.random.default_rng(0)
    lengths = np.where(rng.random(10**5) < 1 / 8, 512, rng.uniform(512, 4096, 10**5))

    assert attended(Config(data=packed)) == pytest.approx((lengths**2).sum() / lengths.sum(), rel=0.01)
    assert attended(Config(data=Data(seq_length=32768, document_length=4096))) == 32768
