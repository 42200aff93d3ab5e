from dataclasses import replace

import pytest
import torch

from nemo_cdt.checkpoint.weights import (
    huggingface_shapes,
    megatron_shapes,
    to_huggingface,
    to_megatron,
)
from nemo_cdt.config import Model

MODEL = Model(
    num_layers=2, hidden_size=16, ffn_hidden_size=24, num_attention_heads=4, num_query_groups=2, vocab_size=10
)


def random_weights(shapes):
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        replace(MODEL, tied_embeddings=True),
        replace(MODEL, num_query_groups=4),
        replace(MODEL, qkv_bias=True),
        replace(MODEL, qk_norm=True, head_dim=6),
    ],
)
def test_there_and_back_again_is_the_identity(model):
    expected = random_weights(huggingface_shapes(model))
    megatron = to_megatron(expected, model)
    assert {name: tuple(tensor.shape) for name, tensor in megatron.items()} == megatron_shapes(model)
    back = to_huggingface(megatron, model)
    assert list(back) == list(expected)
    assert all(torch.equal(back[name], expected[name]) for name in expected)


def test_query_key_and_value_lie_group_by_group():
    weights = random_weights(huggingface_shapes(MODEL))
    q, k, v = (weights[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv")
    # Two groups of two query heads, four rows a head.
    expected = torch.cat([q[0:8], k[0:4], v[0:4], q[8:16], k[4:8], v[4:8]])
    assert torch.equal(to_megatron(weights, MODEL)["decoder.layers.1.self_attention.linear_qkv.weight"], expected)


def test_biases_lie_as_the_rows_of_their_weights():
    model = replace(MODEL, qkv_bias=True)
    weights = random_weights(huggingface_shapes(model))
    q, k, v = (weights[f"model.layers.1.self_attn.{name}_proj.bias"] for name in "qkv")
    expected = torch.cat([q[0:8], k[0:4], v[0:4], q[8:16], k[4:8], v[4:8]])
    assert torch.equal(to_megatron(weights, model)["decoder.layers.1.self_attention.linear_qkv.bias"], expected)


def test_the_gate_lies_before_the_up_projection():
    weights = random_weights(huggingface_shapes(MODEL))
    expected = torch.cat([weights[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up")])
    assert torch.equal(to_megatron(weights, MODEL)["decoder.layers.0.mlp.linear_fc1.weight"], expected)


def test_tied_embeddings_have_no_output_layer():
    assert "lm_head.weight" not in huggingface_shapes(replace(MODEL, tied_embeddings=True))
    assert "output_layer.weight" not in megatron_shapes(replace(MODEL, tied_embeddings=True))
    assert "output_layer.weight" in megatron_shapes(MODEL)


def test_buffers_of_old_checkpoints_are_passed_over():
    weights = random_weights(huggingface_shapes(MODEL))
    old = weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    assert to_megatron(old, MODEL).keys() == to_megatron(weights, MODEL).keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": None}, r"DIR: model\.norm\.weight is missing$"),
        ({"model.norm.bias": torch.ones(16)}, r"DIR: model\.norm\.bias is no weight of this model$"),
        ({"model.norm.weight": torch.ones(8)}, r"DIR: model\.norm\.weight is \(8,\) and not \(16,\)$"),
        ({"model.norm.weight": None, "lm_head.weight": None}, r"is missing, and 1 more$"),
    ],
)
def test_one_wrong_tensor_is_one_error_that_names_it(change, message):
    weights = random_weights(huggingface_shapes(MODEL)) | change
    with pytest.raises(ValueError, match=message):
        to_megatron({name: tensor for name, tensor in weights.items() if tensor is not None}, MODEL, where="DIR")


def test_a_missing_megatron_weight_is_an_error_too():
    weights = random_weights(megatron_shapes(MODEL))
    del weights["decoder.layers.1.mlp.linear_fc2.weight"]
    with pytest.raises(ValueError, match=r"decoder\.layers\.1\.mlp\.linear_fc2\.weight is missing"):
        to_huggingface(weights, MODEL)


def test_a_head_that_is_the_embedding_once_more_is_passed_over_and_another_refused():
    model = replace(MODEL, tied_embeddings=True)
    weights = random_weights(huggingface_shapes(model))
    head = weights["model.embed_tokens.weight"].clone()

    assert to_megatron(weights | {"lm_head.weight": head}, model).keys() == megatron_shapes(model).keys()
    head[0, 0] += 1
    with pytest.raises(ValueError, match=r"tie_word_embeddings=true, but lm_head\.weight is not .*: set it to false"):
        to_megatron(weights | {"lm_head.weight": head}, model, where="config")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(value):
    weights = random_weights(huggingface_shapes(MODEL))
    weights["model.layers.1.mlp.up_proj.weight"][3, 2] = value
    with pytest.raises(ValueError, match=r"folder: model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"):
        dict(to_megatron(weights, MODEL, where="folder"))
