import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_cdt.config import Config, Lora, LoraTarget, Model, load, typed
from nemo_cdt.config.compose import compose, conf_dir
from nemo_cdt.data.tokenizer import load_tokenizer
from nemo_cdt.describe import describe
from nemo_cdt.launch.site import with_site
from nemo_cdt.objectives.cdt import CDTSettings
from nemo_cdt.objectives.registry import baseline_of
from nemo_cdt.utils.user_errors import SeveralError
from nemo_cdt.validation import validate
from tests.described import write_described
from tests.runs import write_stub_of_prepared

SITE = Path(__file__).parents[1].joinpath("launch") / "site.yaml"
OPTIONS = [
    f"{file.parent.name}={file.stem}"
    for file in sorted(conf_dir().glob("*/*.yaml"))
    if file.parent.name not in ("cluster", "prepare")  # no run: cost/test_plan.py, prepare/test_request.py
]


@pytest.fixture(autouse=True)
def inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    write_described(tmp_path / "llama", Model())
    load_tokenizer("byte").save_pretrained(tmp_path / "llama")


def composed(*overrides: str) -> Config:
    return compose(overrides)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_every_group_composes_to_a_run(option):
    group, _, name = option.partition("=")
    site = [f"launcher.site={SITE}"] if group == "launcher" and name != "local" else []
    if name in ("logo", "preferences"):  # one is for the other alone
        site = ["objective=logo", "data=preferences"]
        option = "model=tiny"
    length = [] if group == "experiment" else ["data.seq_length=8192"]
    chosen = [] if group in ("model", "experiment") else ["model=tiny"]
    without = [option, *chosen, *length, "data.path=rows.jsonl", "compare_to=null", *site]
    write_described(Path("llama"), Model() if name in ("init", "demo") else composed(*without).model)
    wanted = [*chosen, *length, "data.path=rows.jsonl", "compare_to=null", "init.hf=llama"]
    if composed(option, *wanted, *site).trainer.num_nodes > 1:
        site = ["launcher=slurm", f"launcher.site={SITE}"]
    config = with_site(composed(option, *wanted, *site))
    if config.data.name.is_prepared:
        config.data.path = "prepared"
        write_stub_of_prepared(Path("prepared"), tokens=config.data.seq_length, tokenizer="llama")
    validate(config)


def test_without_arguments_the_run_is_the_tiny_one():
    config = composed()

    assert (config.name, config.output, config.export.hf) == ("tiny", "runs/tiny", "runs/tiny/hf")
    assert config == composed("experiment=tiny")


def test_a_group_on_the_command_line_wins_over_the_experiment_and_a_key_over_both():
    config = composed("experiment=rows_llama31_8b_32k", "model=tiny", "trainer.max_steps=7", "name=mine")

    assert (config.model.name, config.trainer.max_steps, config.output) == ("tiny", 7, "runs/mine")


def test_lora_is_an_option_of_any_run():
    write_described(Path("llama"), composed("model=llama31_8b").model)
    config = composed("experiment=rows_llama31_8b_32k", "lora=default", "data.path=rows.jsonl", "init.hf=llama")
    validate(config)

    assert (config.model.name, config.lora) == ("llama", Lora(rank=32, alpha=32, targets=list(LoraTarget)))
    assert composed("experiment=rows_llama31_8b_32k").lora == composed("lora.rank=0").lora == Lora()
    # 4096 + 6144, 4096 + 4096, 4096 + 28672, 14336 + 4096 rows and columns in each of 32 layers
    expected = "rank 32, alpha 32 on linear_qkv, linear_proj, linear_fc1, linear_fc2: 71,303,168 trainable parameters"
    assert describe(config)["LoRA"] == expected


def test_llama31_8b_is_what_its_name_says():
    model = composed("model=llama31_8b").model
    hidden, ffn, vocab = model.hidden_size, model.ffn_hidden_size, model.vocab_size
    layer = 2 * hidden * hidden + 2 * hidden * 1024 + 3 * hidden * ffn + 2 * hidden

    expected = 8_030_261_248  # the parameters of meta-llama/Llama-3.1-8B
    assert model.num_layers * layer + 2 * vocab * hidden + hidden == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.max_step=5", "unknown key trainer.max_step: did you mean trainer.max_steps?"),
        ("traner.max_steps=5", "unknown key traner: did you mean trainer?"),
        ("beta=5", "unknown key beta: did you mean objective.beta or longppl.beta?"),
        (
            "launcher.env={A:b}",
            "unknown key launcher.env.A: the keys of launcher.env are yours, add one as +launcher.env.A=VALUE",
        ),
        ("lora=null", "lora=null is no option: choose lora=default|none, or leave it out"),
        ("experiment=null", "experiment=null is no option: choose experiment=alignment_"),
        ("modle=tiny", "unknown key modle: did you mean model?"),
        (
            "+parallel.zzz=1",
            "parallel has tensor, pipeline, virtual_pipeline, context, context_comm, sequence, overlap_grad_reduce",
        ),
        (
            "model=huge",
            "model=huge does not exist: choose model=init|llama31_70b|llama31_8b|llama32_1b|llama3_8b|mistral_7b|"
            "qwen25_7b|qwen3_8b|tiny",
        ),
        ("model.rope_scaling=null", "model.rope_scaling: field 'model.rope_scaling' is not Optional"),
        (
            "lora.targets=[linear_q]",
            "lora.targets[0]: Invalid value 'linear_q', expected one of [linear_qkv, linear_proj",
        ),
        (
            "objective.name=dpo",
            "objective=dpo does not exist: choose objective=cdt|cdt_longce|ce|logo|longce|sft",
        ),
        ("trainer.max_steps=five", "trainer.max_steps: Value 'five' of type 'str' could not be converted to Integer"),
        ("trainer.max_steps=2.5", "trainer.max_steps: Value '2.5' of type 'float' could not be converted"),
        ("trainer.max_steps=null", "trainer.max_steps: field 'trainer.max_steps' is not Optional"),
        ("output=${nope}", "output: Interpolation key 'nope' not found"),
        ("max_steps", "Error parsing override 'max_steps' missing EQUAL at '<EOF>'"),
        ("launcher.setup=[a, b", """is quoted for the shell and for Hydra, as 'data.path="my rows.jsonl"'"""),
        ("trainer.seed=1,2", "To sweep over it, add --multirun to your command line"),
    ],
)
def test_a_mistyped_override_is_one_line_that_says_what_there_is(override, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        composed(override)


def test_several_mistyped_overrides_are_told_at_once():
    words = ["optim.lrr=1", "data.seq_length=512", "trainer.max_stepz=3", "trainer.seed=five", "traner.x=1"]

    with pytest.raises(SeveralError) as error:
        composed(*words)

    assert error.value.lines == [
        "unknown key optim.lrr: did you mean optim.lr?",
        "unknown key trainer.max_stepz: did you mean trainer.max_steps?",
        "trainer.seed: Value 'five' of type 'str' could not be converted to Integer",
        "unknown key traner: did you mean trainer?",
    ]


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        (["objective.lr=0.5"], "shift_lr", 0.5),
        (["objective=longce", "++objective.internal=7"], "stride", 7),
        (["objective=cdt_longce", "objective.lr=2", "objective.internal=7"], "shift_lr", 2),
    ],
)
def test_a_key_by_its_name_of_before_works_and_is_told(capsys, given, key, value):
    config = composed(*given)

    assert getattr(config.objective, key) == value
    old = [word.lstrip("+").partition("=")[0] for word in given if "." in word]
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in said] == old
    assert f"objective.{key} now" in said[0]


def test_a_key_by_its_name_of_before_is_known_in_files_and_in_compare_to(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("objective: {name: cdt, lr: 0.25, internal: 8}\n")  # of all, before 0.2
    beside = baseline_of(composed("objective=ce", "compare_to={name:cdt,lr:1e-3}"))

    assert load(tmp_path / "config.yaml").objective == CDTSettings(shift_lr=0.25)
    assert beside == CDTSettings(shift_lr=1e-3)
    assert capsys.readouterr().err == ""
    assert typed(OmegaConf.create({"objective": {"name": "longce", "internal": 9}})).objective.stride == 9
    assert capsys.readouterr().err.startswith("warning: objective.internal is called objective.stride now")


def test_the_names_of_before_are_no_settings(capsys):
    with pytest.raises(ValueError, match=r"unknown key objective.stride: it is of objective=longce\|cdt_longce"):
        composed("objective=ce", "objective.internal=7")
    with pytest.raises(ValueError, match=r"unknown key objective.shft_lr: did you mean objective.shift_lr"):
        composed("objective.shft_lr=7")
