"""The model of a run is that of its weights: whichever way config.json says it, and whatever is set on top."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_cdt.config import Config, Family, Model, RopeScaling, RopeType
from nemo_cdt.config.compose import compose
from nemo_cdt.config.huggingface import DEFAULTS, read_model
from nemo_cdt.cost.request import read
from nemo_cdt.data.tokenizer import load_tokenizer
from nemo_cdt.validation import validate
from tests.described import described, write_described

SMOLLM2 = Model(
    name="smollm2",
    num_layers=30,
    hidden_size=576,
    ffn_hidden_size=1536,
    num_attention_heads=9,
    num_query_groups=3,
    vocab_size=49152,
    max_positions=8192,
    rotary_base=100000.0,
    rope_scaling=RopeScaling(rope_type=RopeType.none),
    tied_embeddings=True,
)
LLAMA32_3B = Model(
    name="llama",
    num_layers=28,
    hidden_size=3072,
    ffn_hidden_size=8192,
    num_attention_heads=24,
    num_query_groups=8,
    vocab_size=128256,
    rope_scaling=RopeScaling(factor=32.0),
    tied_embeddings=True,
)
QWEN25_05B = Model(
    name="qwen",
    family=Family.qwen2,
    num_layers=24,
    hidden_size=896,
    ffn_hidden_size=4864,
    num_attention_heads=14,
    num_query_groups=2,
    qkv_bias=True,
    vocab_size=151936,
    max_positions=32768,
    rotary_base=1e6,
    rope_scaling=RopeScaling(rope_type=RopeType.none),
    norm_epsilon=1e-6,
    tied_embeddings=True,
)


@pytest.fixture(autouse=True)
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')


def trained(folder: str, *overrides: str) -> Config:
    load_tokenizer("byte").save_pretrained(folder)
    return compose([f"init.hf={folder}", "data=jsonl", "data.path=rows.jsonl", *overrides])


@pytest.mark.parametrize("expected", [SMOLLM2, LLAMA32_3B, QWEN25_05B], ids=lambda model: model.name)
def test_weights_and_rows_are_enough(expected):
    write_described(Path(expected.name), expected)
    config = trained(expected.name)
    validate(config)

    assert config.model == expected
    assert (config.compare_to, config.optim.warmup_steps, config.output) == (None, 0, "runs/run")
    assert config.export.hf == "runs/run/hf"


def test_a_key_of_model_changes_what_the_weights_say_and_nothing_else():
    write_described(Path("qwen"), QWEN25_05B)
    config = trained(
        "qwen", "model.rope_scaling.rope_type=yarn", "model.rope_scaling.factor=4", "model.hidden_dropout=0.1"
    )

    scaling = RopeScaling(rope_type=RopeType.yarn, factor=4.0)
    assert config.model == replace(QWEN25_05B, rope_scaling=scaling, hidden_dropout=0.1)
    validate(config)


def test_what_would_train_another_model_is_refused():
    write_described(Path("smollm2"), SMOLLM2)
    with pytest.raises(ValueError, match=r"model\.num_layers=3, but init\.hf=smollm2 has model\.num_layers=30: leave"):
        validate(trained("smollm2", "model.num_layers=3"))
    with pytest.raises(ValueError, match=r"model=tiny is another model than init\.hf=smollm2, which has .*layers=30"):
        trained("smollm2", "model=tiny")
    write_described(Path("other"), replace(compose(["model=llama31_8b"]).model, rotary_base=1e4))
    with pytest.raises(ValueError, match=r"model=llama31_8b is .* has model\.rotary_base=10000\.0 where that has"):
        trained("other", "model=llama31_8b")


def test_an_experiment_changes_the_model_of_init_as_it_would_its_own():
    write_described(Path("llama3"), compose(["model=llama3_8b"]).model)
    extended = compose(["experiment=context_extension_llama3_8b_64k", "init.hf=llama3", "data.path=d"])

    assert (extended.model.rotary_base, extended.model.max_positions) == (2e7, 65536)
    assert extended.model.name == "llama3"
    write_described(Path("smollm2"), SMOLLM2)
    with pytest.raises(ValueError, match=r"model=llama3_8b is another model than init\.hf=smollm2"):
        compose(["experiment=context_extension_llama3_8b_64k", "init.hf=smollm2"])
    mine = compose(["experiment=context_extension_llama3_8b_64k", "init.hf=smollm2", "model=init"])
    assert (mine.model.num_layers, mine.model.rotary_base) == (30, 2e7)


def test_numbers_that_were_in_fp32_are_the_same_numbers():
    write_described(Path("llama3"), compose(["model=llama3_8b"]).model, rms_norm_eps=9.999999747378752e-06)
    validate(trained("llama3", "model=llama3_8b"))
    write_described(Path("llama3"), compose(["model=llama3_8b"]).model, rms_norm_eps=1.001e-05)
    with pytest.raises(ValueError, match=r"which has model\.norm_epsilon=1\.001e-05 where"):
        trained("llama3", "model=llama3_8b")


@pytest.mark.parametrize("given", [["data=jsonl"], ["data.path=rows.jsonl"], ["init.hf=null"]])
def test_the_bare_command_is_the_tiny_run_and_nothing_else_is(given, capsys):
    assert compose(["objective.beta=3", "optim=constant"]).name == "tiny"
    assert capsys.readouterr().err == ""

    config = compose(given)

    assert (config.name, config.model.name, config.compare_to) == ("run", "tiny", None)
    assert capsys.readouterr().err.startswith("warning: no model is named, so model=tiny is taken, with random weights")
    assert compose([*given, "model=tiny"]) == config
    assert capsys.readouterr().err == ""


def test_values_of_the_demo_are_in_no_other_runs_way():
    validate(compose(["model=tiny", "optim=constant", "optim.lr=1e-5", "trainer.max_steps=2"]))
    validate(compose(["optim=constant", "optim.lr=1e-5"]))


@pytest.mark.parametrize("value", ["~/mine", "'~/mine'", '"~/mine"'])
def test_a_tilde_is_the_users_home(monkeypatch, value):
    monkeypatch.setenv("HOME", "/home/me")

    assert compose([f"output={value}", "name=mine"]).output == "/home/me/mine"


def test_a_plan_is_of_the_model_of_init():
    write_described(Path("llama"), LLAMA32_3B)

    assert read(["init.hf=llama"]).config.model == LLAMA32_3B


def test_a_folder_that_is_not_here_may_be_on_the_cluster():
    elsewhere = ["init.hf=/cluster/llama", "data=jsonl", "data.path=/cluster/rows", "launcher=slurm"]
    with pytest.raises(
        ValueError, match=r"init\.hf=/cluster/llama is no folder with a model: set the path of one .*, or model=NAME"
    ):
        compose(elsewhere)
    assert compose([*elsewhere, "model=llama31_8b"]).model.num_layers == 32


SPELLED = {
    "of transformers 4": ({"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 2.0}}, True),
    "both words": ({"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "rope_type": "yarn", "factor": 2.0}}, True),
    "of transformers 5": ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 5e5}}, True),
    "with both": (
        {"rope_theta": 1e4, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}
        | {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 5e5}},
        True,
    ),
    "none of 5": ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, False),
    "none of 4": ({"rope_theta": 5e5, "rope_scaling": None}, False),
}


@pytest.mark.parametrize("how", SPELLED)
def test_rope_is_the_same_however_it_is_spelled(tmp_path, how):
    said, scaled = SPELLED[how]
    raw = {key: value for key, value in described(SMOLLM2).items() if not key.startswith("rope")} | said
    (tmp_path / "config.json").write_text(json.dumps(raw))
    expected = RopeScaling(rope_type=RopeType.yarn, factor=2.0)

    found = read_model(tmp_path)

    assert found.rotary_base == 5e5
    assert found.rope == (expected if scaled else None)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"rope_scaling": {"type": "yarn", "rope_type": "llama3", "factor": 2.0}}, "rope_type=llama3 and type=yarn"),
        (
            {
                "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
                "rope_parameters": {"rope_type": "yarn", "factor": 4.0},
            },
            "rope_scaling.factor=2.0 and rope_parameters.factor=4.0: remove one of the two",
        ),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type=yarn without factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "its RoPE scaling is linear"),
    ],
)
def test_a_rope_that_may_mean_two_things_is_refused(tmp_path, said, expected):
    write_described(tmp_path, SMOLLM2, **said)
    with pytest.raises(ValueError, match=expected):
        read_model(tmp_path)


def test_what_a_config_json_leaves_out_is_what_transformers_takes():
    from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    classes = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    derived = {"head_dim", "num_key_value_heads", "sliding_window"}  # where they are null
    for family, defaults in DEFAULTS.items():
        theirs = classes[family]()
        for name, value in defaults.items():
            if not (name in derived and value is None) and not (name == "sliding_window" and family != "mistral"):
                assert getattr(theirs, name, None) == value, (family, name)
