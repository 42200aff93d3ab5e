"""Models that can be analysed, and those that cannot: one line each."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BloomConfig, Gemma2Config, GPT2Config, LlamaConfig, MambaConfig

from nemo_cdt.analysis import analyzed_model, attention
from nemo_cdt.analysis.analyzed_model import checkpoints, choose_device, load, opened
from nemo_cdt.analysis.memory import GIB, fixed, parameters, per_row, per_token, require_room
from nemo_cdt.analysis.observe import observe
from nemo_cdt.config import Accelerator, Precision
from nemo_cdt.evaluation.model import read_config
from tests.analysis.models import SIZES, eager
from tests.analysis.test_flow import TOP_K, sample

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    eager("qwen3").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_is_loaded_as_it_is(folder):
    found = load(folder, read_config(folder), Precision.fp32, CPU)
    expected = eager("qwen3").state_dict()

    assert all(torch.equal(weight, expected[name]) for name, weight in found.model.state_dict().items())
    assert load(folder, read_config(folder), Precision.bf16, CPU).model.dtype is torch.bfloat16


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").unlink()
    torch.save(eager("qwen3").state_dict(), folder / "pytorch_model.bin")

    with pytest.raises(ValueError, match=rf"{folder} has pickled weights only .*safetensors") as raised:
        load(folder, read_config(folder), Precision.fp32, CPU)
    assert "\n" not in str(raised.value)


def test_a_missing_weight_is_one_line_and_no_random_one(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.q_norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match=r"its weights lack model\.layers\.1\.self_attn\.q_norm\.weight"):
        load(folder, read_config(folder), Precision.fp32, CPU)


@pytest.mark.parametrize("text", [None, "{}", '{"model_type": "unheard"}'])
def test_a_folder_without_a_model_is_one_line(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}(: it is no Hugging Face model|/config\.json: No such file)"
    ) as raised:
        read_config(tmp_path)
    assert "\n" not in str(raised.value)


def test_the_rope_of_transformers_5_is_understood(folder):
    raw = json.loads((folder / "config.json").read_text())
    del raw["rope_theta"], raw["rope_scaling"]
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 123.0}
    (folder / "config.json").write_text(json.dumps(raw | {"rope_parameters": scaled}))
    config = read_config(folder)

    assert config.rope_theta == 123.0
    assert config.rope_scaling["factor"] == 2.0
    (folder / "config.json").write_text(json.dumps(raw | {"rope_parameters": {"full_attention": scaled}}))
    with pytest.raises(ValueError, match="its rope_parameters are not those of one kind of layer"):
        read_config(folder)


UNKNOWN = {
    "GPT2LMHeadModel": GPT2Config(n_embd=48, n_layer=2, n_head=6, vocab_size=300),
    "BloomForCausalLM": BloomConfig(hidden_size=48, n_layer=2, n_head=6, vocab_size=300),
    "MambaForCausalLM": MambaConfig(hidden_size=48, num_hidden_layers=2, vocab_size=300),
    "Gemma2ForCausalLM": Gemma2Config(**SIZES, head_dim=8),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_model_whose_attention_is_another_is_one_line(tmp_path, name):
    AutoModelForCausalLM.from_config(UNKNOWN[name]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="analyze a Llama, Qwen2, Qwen3 or Mistral, or another model of") as raised:
        observe(load(tmp_path, read_config(tmp_path), Precision.fp32, CPU), sample(), TOP_K)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value) or name[:4] in str(raised.value)


def test_a_layer_that_attends_by_itself_is_one_line(monkeypatch):
    found = analyzed_model.AnalyzedModel(eager("llama"))
    with pytest.raises(ValueError, match="LlamaForCausalLM has 3 layers, of which 0 attend through transformers'"):
        observe(found, sample(), TOP_K)


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device=gpu, but torch sees no GPU here"):
        choose_device(Accelerator.gpu)
    assert choose_device(Accelerator.auto) == CPU


def test_a_run_is_its_last_finished_checkpoint_converted(tmp_path, monkeypatch):
    for name in ("step=9", "step=10", "step=11"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints/step=11-unfinished").touch()
    monkeypatch.setattr(
        analyzed_model, "export_huggingface", lambda source, to: (to / "config.json").write_text(str(source))
    )
    with opened(tmp_path) as folder:
        assert (folder / "config.json").read_text() == str(tmp_path / "checkpoints/step=10")

    assert not folder.exists()
    assert [path.name for path in checkpoints(tmp_path)] == ["step=9", "step=10"]


def test_a_checkpoint_that_is_not_whole_is_one_line(tmp_path):
    (tmp_path / "checkpoints/step=10/weights").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"step=10 cannot be converted: .*is no finished NeMo checkpoint") as raised:
        opened(tmp_path).__enter__()
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_no_model_and_no_run_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"is no Hugging Face folder .* and no run with a finished checkpoint"):
        checkpoints(tmp_path)


LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)


def test_128k_tokens_of_an_8b_model_fit_one_h200_by_the_estimate():
    assert parameters(LLAMA_8B) == 8_030_261_248
    require_room(LLAMA_8B, "it", tokens=131072, rows=16, width=2, copies=1, free=139 * GIB)
    with pytest.raises(ValueError, match=r"it has 131,072 tokens, which need about \d+\.\d GiB, and 78.0 are free"):
        require_room(LLAMA_8B, "it", tokens=131072, rows=16, width=2, copies=1, free=78 * GIB)


def test_what_would_fit_fits_and_one_more_does_not():
    def need(tokens: int) -> int:
        heads = fixed(10**6, 16, 32)
        return 2 * parameters(LLAMA_8B) + per_row(LLAMA_8B, 2) * 16 + heads + per_token(LLAMA_8B, 2) * tokens

    with pytest.raises(ValueError, match=r"at most ([\d,]+) tokens fit, with dtype=bf16") as raised:
        require_room(LLAMA_8B, "it", tokens=10**6, rows=16, width=2, copies=1, free=78 * GIB)
    tokens = int(str(raised.value).split("at most ")[1].split(" ")[0].replace(",", ""))
    assert need(tokens) <= 78 * GIB < need(tokens + 1)
    with pytest.raises(ValueError, match=r"the weights alone are 59\.8: it needs a larger device"):
        require_room(LLAMA_8B, "it", tokens=10, rows=1, width=2, copies=4, free=40 * GIB)


def test_attention_that_is_not_causal_is_one_line():
    module = torch.nn.Module()
    q = torch.zeros(1, 2, 4, 8)
    with pytest.raises(ValueError, match="Module attends with attention_mask, which analyses do not know"):
        attention.watched_attention(module, q, q, q, torch.ones(4, 4), 1.0)
    with pytest.raises(ValueError, match="Module attends with a scaling of its own, which"):
        attention.watched_attention(module, q, q, q, None)
    with pytest.raises(ValueError, match="Module attends with s_aux, which"):
        attention.watched_attention(module, q, q, q, None, 1.0, s_aux=q)
