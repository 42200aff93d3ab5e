import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from nemo_cdt.checkpoint.steps import latest_checkpoint
from nemo_cdt.config import Model, Parallel
from nemo_cdt.data.tokenizer import byte_tokenizer
from nemo_cdt.nemo.convert import convert
from nemo_cdt.utils.cpu import cuda_on_cpu
from tests import jobs
from tests.families import FAMILIES, PLAIN
from tests.llama import loaded, random_hugging_face
from tests.ranks import on_ranks
from tests.runs import TINY, VOCABULARY, small_run, write_documents

OLD_LENGTH = 64  # RoPE scaling acts beyond
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": OLD_LENGTH,
}


def write_llama(folder, dtype=torch.float32, **changes):
    """A tiny Llama with grouped queries and norms that are not one. Its vocabulary is no multiple of anything."""
    fields = {
        "vocab_size": 263,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.1,
    }
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**(fields | changes)))
    for name, parameter in llama.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    llama.to(dtype).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def write_family(folder, model, dtype=torch.float32):
    """A tiny model of that architecture, as :func:`write_llama` writes one."""
    random_hugging_face(model, 263).to(dtype).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(found, expected):
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]) for name in expected
    )


@contextmanager
def one_rank() -> Iterator[None]:
    with cuda_on_cpu():
        from megatron.core import parallel_state
        from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

        from nemo_cdt.nemo.assemble import tear_down

        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        model_parallel_cuda_manual_seed(0)
        try:
            yield
        finally:
            tear_down()


@torch.no_grad()
def megatron_logits(checkpoint, tokens):
    """Of the model that the checkpoint's own context describes, loaded as NeMo loads it: strictly."""
    with one_rank():
        from megatron.core import dist_checkpointing
        from nemo.lightning.io import load_context

        llama = load_context(checkpoint / "context", subpath="model").config.configure_model(tokenizer=None)
        loaded = dist_checkpointing.load(llama.sharded_state_dict(prefix="module."), str(checkpoint / "weights"))
        llama.load_state_dict({name.removeprefix("module."): value for name, value in loaded.items()})
        return llama(tokens, torch.arange(tokens.size(1))[None], None)


@torch.no_grad()
def expected_logits(folder, tokens):
    return loaded(folder)(tokens).logits


SMALL_RUN = {
    "vocab_size": VOCABULARY,
    "hidden_size": TINY.hidden_size,
    "intermediate_size": TINY.ffn_hidden_size,
    "num_hidden_layers": TINY.num_layers,
}
TOKENS = torch.arange(4 * OLD_LENGTH)[None] * 37 % 263


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Hugging Face folder and the NeMo checkpoint made of it."""
    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder / "hf")
    convert(folder / "hf", folder / "nemo")
    return folder


ARCHITECTURES: dict[str, Model] = {  # those of FAMILIES go there and back in tests/test_families.py
    "mistral without window": replace(FAMILIES["mistral"], sliding_window=None),
    "llama with larger heads": replace(TINY, head_dim=24),
    "qwen2 with window and larger heads": replace(FAMILIES["qwen2"], head_dim=24, sliding_window=16),
    "tied qwen3 with yarn": replace(
        FAMILIES["qwen3"], rope_scaling=FAMILIES["yarn llama"].rope_scaling, tied_embeddings=True
    ),
}


def assert_back_again(folder):
    """HF to NEMO to BACK: the same bits, and the same words."""
    convert(folder / "nemo", folder / "back")
    assert same(weights(folder / "back"), weights(folder / "hf"))
    found, expected = (json.loads((folder / name / "config.json").read_text()) for name in ("back", "hf"))
    tokenizer = byte_tokenizer()
    expected |= {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if (rope := expected["rope_scaling"]) and rope["rope_type"] == "yarn":
        expected["rope_scaling"] = rope | {"beta_fast": 32.0, "beta_slow": 1.0}  # what transformers takes without
    if expected["model_type"].startswith("qwen") and not expected["use_sliding_window"]:
        expected["max_window_layers"] = expected["num_hidden_layers"]  # no window: it says nothing
    assert found == expected
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (folder / "back" / file).read_bytes() == (folder / "hf" / file).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "rope_scaling": None}])
def test_there_and_back_again_changes_no_bit(tmp_path, dtype, changes):
    write_llama(tmp_path / "hf", dtype, **changes)
    convert(tmp_path / "hf", tmp_path / "nemo")
    assert_back_again(tmp_path)


def assert_same_logits(folder):
    expected = expected_logits(folder / "hf", TOKENS)
    found = megatron_logits(folder / "nemo", TOKENS)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [{}, {"rope_scaling": None}, {"tie_word_embeddings": True}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1}],
)
def test_megatron_computes_what_transformers_computes(tmp_path, changes):
    write_llama(tmp_path / "hf", **changes)
    convert(tmp_path / "hf", tmp_path / "nemo")
    assert_same_logits(tmp_path)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_family_goes_there_and_back_and_computes_the_same(tmp_path, name):
    write_family(tmp_path / "hf", ARCHITECTURES[name])
    convert(tmp_path / "hf", tmp_path / "nemo")
    assert_back_again(tmp_path)
    assert_same_logits(tmp_path)


@pytest.mark.parametrize("field", ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])
def test_another_rope_scaling_would_be_seen(llama, tmp_path, field):
    write_llama(tmp_path / "hf", rope_scaling=LLAMA3 | {field: type(LLAMA3[field])(LLAMA3[field] * 2)})
    difference = expected_logits(tmp_path / "hf", TOKENS) - megatron_logits(llama / "nemo", TOKENS)
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("swapped", [("mlp.gate_proj", "mlp.up_proj"), ("self_attn.k_proj", "self_attn.v_proj")])
def test_swapped_matrices_would_be_seen(llama, tmp_path, swapped):
    write_llama(tmp_path / "hf")
    state = weights(tmp_path / "hf")
    one, other = (f"model.layers.1.{name}.weight" for name in swapped)
    save_file(state | {one: state[other], other: state[one]}, tmp_path / "hf/model.safetensors", {"format": "pt"})
    difference = expected_logits(tmp_path / "hf", TOKENS) - megatron_logits(llama / "nemo", TOKENS)
    assert difference.abs().max() > 1e-2


def test_a_norm_left_at_one_would_be_seen(llama, tmp_path):
    write_llama(tmp_path / "hf")
    state = weights(tmp_path / "hf")
    name = "model.layers.1.input_layernorm.weight"
    save_file(state | {name: torch.ones(64)}, tmp_path / "hf/model.safetensors", {"format": "pt"})
    difference = expected_logits(tmp_path / "hf", TOKENS) - megatron_logits(llama / "nemo", TOKENS)
    assert difference.abs().max() > 1e-2


@pytest.mark.parametrize("parallel", [Parallel(tensor=2), Parallel(pipeline=2)])
def test_a_run_starts_from_hugging_face_and_ends_there_under_any_layout(tmp_path, parallel):
    write_llama(tmp_path / "hf", **SMALL_RUN, rope_scaling=None)
    convert(tmp_path / "hf", tmp_path / "nemo")
    write_documents(tmp_path / "d.jsonl", kind="lm", count=16, longest=60)
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", steps=1, parallel=parallel)
    config.model = replace(config.model, rope_scaling=PLAIN)
    config.init.nemo, config.init.hf = str(tmp_path / "nemo"), str(tmp_path / "hf")
    (tmp_path / "hf/generation_config.json").write_text('{"temperature": 0.6}')
    config.trainer.devices = 2
    config.optim.lr = config.optim.min_lr = 1e-30  # a step that moves nothing: what comes out is what went in
    on_ranks(jobs.train, 2, config)
    checkpoint = latest_checkpoint(tmp_path / "run/checkpoints")
    assert checkpoint is not None
    convert(checkpoint, tmp_path / "back")
    assert same(weights(tmp_path / "back"), weights(tmp_path / "hf"))
    assert (tmp_path / "back/generation_config.json").read_text() == '{"temperature": 0.6}'


def test_a_conversion_leaves_the_process_as_it_was(tmp_path):
    write_llama(tmp_path / "hf")
    environment = dict(os.environ)
    convert(tmp_path / "hf", tmp_path / "nemo")
    assert not torch.distributed.is_initialized()
    assert dict(os.environ) == environment
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "nemo"]


def damaged(folder, change):
    write_llama(folder)
    state = weights(folder)
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.layers.2.mlp.up_proj.weight"), r"model\.layers\.2\.mlp\.up_proj\.weight is missing"),
        (lambda s: s.update({"model.layers.3.mlp.up_proj.weight": torch.ones(1)}), r"is no weight of this model"),
        (lambda s: s.update({"lm_head.weight": torch.ones(256, 64)}), r"lm_head\.weight is \(256, 64\) and not \(263"),
        (lambda s: s["model.layers.1.mlp.up_proj.weight"][2].fill_(torch.nan), r"up_proj\.weight holds NaN"),
    ],
)
def test_a_hugging_face_folder_that_does_not_fit_leaves_nothing_behind(tmp_path, change, message):
    damaged(tmp_path / "hf", change)
    with pytest.raises(ValueError, match=f"/hf: .*{message}"):
        convert(tmp_path / "hf", tmp_path / "nemo")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def change_context(checkpoint, old, new):
    path = checkpoint / "context/model.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    (checkpoint / "checksums.json").unlink()  # they would tell first


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  num_layers: 3\n", "  num_layers: 4\n", r"decoder\.layers\.\S+ is \(3, .*\) and not \(4, "),
        (
            "  ffn_hidden_size: 96\n",
            "  ffn_hidden_size: 32\n",
            r"linear_fc1\.weight is \(3, 192, 64\) and not ",
        ),
        ("output_weights: false", "output_weights: true", r"output_layer\.weight is no weight of this model"),
        ("  qk_layernorm: false", "  qk_layernorm: true", r"self_attention\.q_layernorm\.weight is missing"),
        ("  add_qkv_bias: false", "  add_qkv_bias: true", r"self_attention\.linear_qkv\.bias is missing"),
        ("  kv_channels: null", "  kv_channels: 32", r"linear_qkv\.weight is \(3, 128, 64\) and not \(3, 256, 64\)"),
        ("  window_size: null", "  window_size: [-1, 0]", "holds none of llama, .*: its window_size is"),
        ("functional.silu", "functional.gelu", "holds none of llama, .*: its activation_func is"),
    ],
)
def test_a_nemo_checkpoint_that_does_not_fit_leaves_nothing_behind(tmp_path, old, new, message):
    write_llama(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "nemo")
    change_context(tmp_path / "nemo", old, new)
    with pytest.raises(ValueError, match=f"/nemo.*{message}"):
        convert(tmp_path / "nemo", tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "nemo"]


def test_an_unfinished_checkpoint_is_refused(tmp_path):
    (tmp_path / "step=3/weights").mkdir(parents=True)
    with pytest.raises(ValueError, match="step=3 is no finished NeMo checkpoint"):
        convert(tmp_path / "step=3", tmp_path / "hf")


def test_a_folder_of_neither_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json, as a Hugging Face model has, and no weights folder"):
        convert(tmp_path, tmp_path / "hf")


def test_a_destination_that_holds_something_is_left_alone(llama, tmp_path):
    (tmp_path / "file").touch()
    for source in ("hf", "nemo"):
        with pytest.raises(ValueError, match="already exists and is not empty"):
            convert(llama / source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
