"""conf's models beside NeMo's own configs of the same ones, which NVIDIA took from the Hub."""

from dataclasses import fields

import pytest

from nemo_cdt.config import FP8, Config
from nemo_cdt.utils.cpu import cuda_on_cpu
from tests.cost.models import model

NEMO = {
    "llama3_8b": "Llama3Config8B",
    "llama31_8b": "Llama31Config8B",
    "llama31_70b": "Llama31Config70B",
    "llama32_1b": "Llama32Config1B",
    "qwen25_7b": "Qwen25Config7B",
    "qwen3_8b": "Qwen3Config8B",
    "mistral_7b": "MistralConfig7B",
}
COMPARED = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "add_qkv_bias",
    "qk_layernorm",
    "window_size",
    "rotary_base",
    "layernorm_epsilon",
    "share_embeddings_and_output_weights",
    "position_embedding_type",
    "normalization",
    "add_bias_linear",
    "gated_linear_unit",
)
OF_VERSION_3 = {"window_size": None, "rotary_base": 1000000.0}  # NeMo's Mistral is 0.1


@pytest.mark.parametrize("name", NEMO)
def test_a_model_is_that_of_nemo(name):
    with cuda_on_cpu():
        from nemo.collections import llm

        from nemo_cdt.nemo.model import nemo_config

        theirs, conf = getattr(llm, NEMO[name]), model(name)
        config = nemo_config(Config(model=conf), vocab_size=conf.vocab_size, on_gpu=False)
    known = {field.name: field.default for field in fields(theirs)}
    expected = {key: known[key] for key in COMPARED} | (OF_VERSION_3 if name == "mistral_7b" else {})
    expected["kv_channels"] = expected["kv_channels"] or expected["hidden_size"] // expected["num_attention_heads"]

    assert {key: getattr(config, key) for key in COMPARED} == expected
    if conf.rope:
        scaling = (conf.rope.factor, conf.rope.low_freq_factor, conf.rope.high_freq_factor)
        assert scaling == (known["scale_factor"], known["low_freq_factor"], known["high_freq_factor"])
        assert conf.rope.original_max_position_embeddings == known["old_context_len"]


def test_fp8_without_its_library_is_one_line():
    config = Config(model=model("llama32_1b"))
    config.trainer.fp8 = FP8.detection

    with cuda_on_cpu():
        from nemo_cdt.nemo.model import nemo_config

        with pytest.raises(ValueError, match=r"fp8=detection: Transformer Engine is not installed; set trainer\.fp8"):
            nemo_config(config, vocab_size=128, on_gpu=False)
