import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, MistralConfig

from nemo_cdt.checkpoint import huggingface
from nemo_cdt.checkpoint.weights import huggingface_shapes
from nemo_cdt.config import Family, Model, RopeScaling, RopeType
from nemo_cdt.config.huggingface import read_model
from nemo_cdt.data.tokenizer import byte_tokenizer

MODEL = Model(
    name="hf",
    num_layers=2,
    hidden_size=16,
    ffn_hidden_size=24,
    num_attention_heads=4,
    num_query_groups=2,
    vocab_size=262,
    max_positions=16384,
    rope_scaling=RopeScaling(factor=32.0),
    norm_epsilon=1e-6,
    init_std=0.1,
)


def written(folder, model=MODEL, dtype=torch.bfloat16):
    folder.mkdir()
    byte_tokenizer().save_pretrained(folder)
    weights = {name: torch.randn(shape, dtype=dtype) for name, shape in huggingface_shapes(model).items()}
    huggingface.save(folder, weights, model)
    return weights


def change_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def test_a_model_is_read_as_it_was_written(tmp_path):
    expected = written(tmp_path / "hf")
    assert read_model(tmp_path / "hf") == MODEL
    weights = huggingface.read_weights(tmp_path / "hf")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_transformers_loads_every_weight_in_its_precision(tmp_path):
    expected = written(tmp_path / "hf")
    model, loading = LlamaForCausalLM.from_pretrained(tmp_path / "hf", torch_dtype="auto", output_loading_info=True)
    assert not any(loading.values())
    assert all(torch.equal(model.state_dict()[name], expected[name]) for name in expected)


def test_the_config_has_the_tokenizers_special_tokens(tmp_path):
    written(tmp_path / "hf")
    config, tokenizer = AutoConfig.from_pretrained(tmp_path / "hf"), byte_tokenizer()
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )


def test_a_large_model_is_written_in_shards(tmp_path, monkeypatch):
    split = huggingface.split_torch_state_dict_into_shards
    monkeypatch.setattr(huggingface, "split_torch_state_dict_into_shards", partial(split, max_shard_size=4000))
    expected = written(tmp_path / "hf")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    weights = huggingface.read_weights(tmp_path / "hf")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    next((tmp_path / "hf").glob("model-00002-*")).unlink()
    with pytest.raises(ValueError, match=r"index\.json: it names model-00002-.*, which is not there"):
        huggingface.read_weights(tmp_path / "hf")


def test_rope_as_transformers_5_writes_it_is_understood(tmp_path):
    written(tmp_path / "hf")
    rope = {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    change_config(tmp_path / "hf", rope_parameters=rope, rope_theta=..., rope_scaling=...)
    assert read_model(tmp_path / "hf") == MODEL


def test_what_an_older_config_leaves_out_is_what_transformers_takes(tmp_path):
    written(tmp_path / "hf")
    left_out = ("num_key_value_heads", "rope_theta", "rope_scaling", "rms_norm_eps", "attention_bias", "head_dim")
    change_config(tmp_path / "hf", **dict.fromkeys(left_out, ...))
    model, default = read_model(tmp_path / "hf"), LlamaConfig()
    assert (model.num_query_groups, model.rope) == (model.num_attention_heads, None)
    assert (model.rotary_base, model.norm_epsilon) == (default.rope_theta, default.rms_norm_eps)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, r"config.json says architectures=\['GemmaForCausalLM'\]"),
        ({"hidden_act": "gelu"}, "config.json says hidden_act=gelu, not silu"),
        ({"attention_bias": True}, "config.json says attention_bias=True, not False"),
        ({"mlp_bias": True}, "config.json says mlp_bias=True, not False"),
        ({"quantization_config": {"bits": 4}}, "config.json says quantization_config="),
        ({"partial_rotary_factor": 0.5}, "config.json says partial_rotary_factor=0.5, not 1.0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide num_attention_heads=4"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "its RoPE scaling is linear; only llama3, yarn, or"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}},
            "config.json says rope_scaling.truncate=False, which is not known",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
            "config.json says rope_scaling.rope_type=llama3 without",
        ),
    ],
)
def test_what_megatron_would_compute_differently_is_refused(tmp_path, change, reason):
    written(tmp_path / "hf")
    change_config(tmp_path / "hf", **change)
    with pytest.raises(ValueError, match=f"hf is no Hugging Face model of llama, mistral, qwen2, qwen3: {reason}"):
        read_model(tmp_path / "hf")


QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_hidden_layers": 3,
    "sliding_window": 4096,
}


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({}, None),
        ({"use_sliding_window": True, "max_window_layers": 0}, 4096),
        ({"use_sliding_window": True, "max_window_layers": 3}, None),
        ({"use_sliding_window": True, "layer_types": ["sliding_attention"] * 3}, 4096),
    ],
)
def test_qwens_window_is_that_of_all_layers_or_of_none(tmp_path, changes, window):
    written(tmp_path / "hf")
    change_config(tmp_path / "hf", **QWEN | changes)
    model = read_model(tmp_path / "hf")
    assert (model.sliding_window, model.qkv_bias, model.family) == (window, True, Family.qwen2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"use_sliding_window": True, "max_window_layers": 1},
            "use_sliding_window=True with max_window_layers=1: full_attention in some layers and sliding_attention in",
        ),
        ({"use_mrope": True}, "use_mrope=True, not False"),
    ],
)
def test_of_qwen_too(tmp_path, change, reason):
    written(tmp_path / "hf")
    change_config(tmp_path / "hf", **QWEN | change)
    with pytest.raises(ValueError, match=f"config.json says {reason}"):
        read_model(tmp_path / "hf")


def test_a_mistral_as_transformers_saves_it_needs_no_rope_scaling(tmp_path):
    MistralConfig(architectures=["MistralForCausalLM"], sliding_window=None).save_pretrained(tmp_path)

    assert "rope_scaling" not in (tmp_path / "config.json").read_text()
    assert read_model(tmp_path).rope is None


def test_yarn_without_its_original_length_takes_that_of_the_model_as_transformers_does(tmp_path):
    written(tmp_path / "hf")
    change_config(tmp_path / "hf", rope_scaling={"type": "yarn", "factor": 4.0, "attention_factor": None})
    expected = RopeScaling(rope_type=RopeType.yarn, factor=4.0, original_max_position_embeddings=16384)
    assert read_model(tmp_path / "hf").rope == expected


@pytest.mark.parametrize("text", [None, "{", "[1]"])
def test_a_folder_without_a_readable_config_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: "):
        read_model(tmp_path)


def test_pickled_weights_are_never_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ValueError, match=r"has pickled weights only \(pytorch_model\.bin\)"):
        huggingface.read_weights(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no weights: neither model\.safetensors nor"):
        huggingface.read_weights(tmp_path)


def test_a_damaged_file_is_refused(tmp_path):
    written(tmp_path / "hf")
    path = tmp_path / "hf/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors: it is no whole safetensors file"):
        huggingface.read_weights(tmp_path / "hf")


def test_weights_are_stored_as_transformers_marks_them(tmp_path):
    written(tmp_path / "hf", dtype=torch.float32)
    assert AutoConfig.from_pretrained(tmp_path / "hf").torch_dtype == torch.float32
    assert {tensor.dtype for tensor in load_file(tmp_path / "hf/model.safetensors").values()} == {torch.float32}
