import pytest

from nemo_cdt.config import Config, DataName, Init, Model, RopeScaling, RopeType, load, save, walk


def test_a_saved_run_loads_as_it_was(tmp_path):
    expected = Config(
        name="run",
        compare_to="ce",
        model=Model(vocab_size=384, rope_scaling=RopeScaling(factor=4.0)),
    )
    expected.data.name = DataName.jsonl
    expected.objective.shift_lr = 1e-5

    save(expected, tmp_path / "out/config.yaml")

    assert load(tmp_path / "out/config.yaml") == expected


def test_a_run_without_rope_scaling_loads_without(tmp_path):
    save(Config(model=Model(rope_scaling=RopeScaling(rope_type=RopeType.none))), tmp_path / "config.yaml")

    assert load(tmp_path / "config.yaml").model.rope is None


def test_a_tokenizer_that_is_not_named_is_that_of_init_or_byte(tmp_path):
    (tmp_path / "with/context/tokenizer").mkdir(parents=True)
    for folder in ("with", "with/context/tokenizer"):
        (tmp_path / folder / "tokenizer_config.json").touch()
    init = Init(hf=str(tmp_path / "with"))

    assert Config().tokenizer == "byte"
    assert Config(init=Init(hf=str(tmp_path))).tokenizer == "byte"
    assert Config(init=init).tokenizer == init.hf
    assert Config(init=Init(nemo=init.hf)).tokenizer == f"{init.hf}/context/tokenizer"
    assert Config(init=init, model=Model(tokenizer="byte")).tokenizer == "byte"


def test_saving_replaces_the_file_and_leaves_no_other(tmp_path):
    save(Config(name="first"), tmp_path / "config.yaml")
    save(Config(name="second"), tmp_path / "config.yaml")

    assert load(tmp_path / "config.yaml").name == "second"
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trainer: {max_step: 5}", "'max_step' not in 'Trainer'"),
        ("trainer: {max_steps: five}", "'five' of type 'str' could not be converted to Integer"),
        (
            "objective: {name: dpo}",
            r"objective=dpo does not exist: choose objective=cdt\|cdt_longce\|ce",
        ),
    ],
)
def test_a_file_with_a_mistake_is_one_line_that_names_it(tmp_path, text, expected):
    (tmp_path / "config.yaml").write_text(text)

    with pytest.raises(ValueError, match=f"config.yaml: .*{expected}") as raised:
        load(tmp_path / "config.yaml")

    assert "\n" not in str(raised.value)


def test_every_key_is_walked_with_its_value():
    values = dict(walk(Config()))

    assert values["trainer.max_steps"] == 100
    assert values["model.rope_scaling.factor"] == 8.0
    assert values["compare_to"] is None


def test_a_head_is_as_large_as_is_said_or_its_share_of_the_hidden_size():
    model = Model(hidden_size=64, num_attention_heads=4, num_query_groups=2)

    assert (model.head_size, model.query_size, model.key_size) == (16, 64, 32)
    model.head_dim = 24
    assert (model.head_size, model.query_size, model.key_size) == (24, 96, 48)


def test_ranks_that_do_not_share_a_model_share_the_batch():
    config = Config()
    config.trainer.devices, config.trainer.num_nodes = 8, 2
    config.parallel.tensor, config.parallel.context = 2, 2
    config.trainer.global_batch_size, config.trainer.micro_batch_size = 32, 2

    assert (config.trainer.world_size, config.parallel.model_size) == (16, 4)
    assert (config.data_parallel, config.num_microbatches) == (4, 4)
