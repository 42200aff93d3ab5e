import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from packaging.version import Version

from nemo_cdt.checkpoint.exported import replacing
from nemo_cdt.config import Config, Model, save, typed
from nemo_cdt.utils.user_errors import SeveralError, reported
from nemo_cdt.validation import check_unused, layout, validate, validate_layout
from tests.described import write_described


def run(*overrides: str) -> Config:
    return typed(OmegaConf.from_dotlist(list(overrides)))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_defaults_are_a_run():
    validate(Config())


@pytest.mark.parametrize(
    "overrides",
    [
        "trainer.devices=2 parallel.tensor=2 parallel.sequence=true",
        "trainer.devices=4 parallel.pipeline=2 parallel.virtual_pipeline=2 trainer.global_batch_size=4",
        "trainer.devices=4 parallel.context=4 data.seq_length=1024",
        "objective.shift_lr=1e-5",
        "objective.beta=0",
        "compare_to=ce",
        "objective.name=sft compare_to.name=longce compare_to.window=512",
        "objective.name=cdt_longce compare_to=cdt data.seq_length=8192",
        "model.rope_scaling.rope_type=none model.vocab_size=384",
        "model.rope_scaling.rope_type=yarn model.rope_scaling.beta_fast=16 model.rope_scaling.attention_factor=1.2",
        "model.family=qwen3 model.qk_norm=true model.head_dim=24",
        "model.family=mistral model.sliding_window=4096 parallel.context=2 trainer.devices=2 parallel.context_comm=a2a",
        "model.attention_dropout=0.1 model.hidden_dropout=0.1",
        "trainer.precision=bf16 trainer.accelerator=cpu",
    ],
)
def test_a_run_that_can_be_is_accepted(overrides):
    validate(run(*overrides.split()))


REFUSED = {
    # numbers
    "trainer.max_steps=0": "set it to a number above 0",
    "trainer.micro_batch_size=-1": "set it to a number above 0",
    "model.vocab_size=0": "set it to a number above 0",
    "optim.lr=0": "set it to a number above 0",
    "optim.lr=.nan": "set it to a number above 0",
    "objective.beta=-1": "set it to 0 or more",
    "objective.beta=.inf": "set it to 0 or more",
    "trainer.val_interval=-1": "set it to 0 or more",
    "model.rope_scaling.factor=0": "set it to a number above 0",
    # the model
    "model.hidden_size=130": "set model.hidden_size=128",
    "model.num_query_groups=3": "set model.num_query_groups to 1, 2, 4",
    "model.head_dim=25": "set model.head_dim=26",
    "model.hidden_dropout=1": "model.hidden_dropout=1.0: set it below 1",
    "model.attention_dropout=-0.1": "set it to 0 or more",
    "model.family=qwen2": "set model.qkv_bias=true, or another model.family",
    "model.qk_norm=true": "which at Hugging Face has none: set model.qk_norm=false",
    "model.sliding_window=64": "set model.sliding_window=null, or model.family=mistral",
    "model.family=mistral model.sliding_window=64 parallel.context=2 trainer.devices=2": (
        "set parallel.context_comm=all_gather or a2a"
    ),
    "model.family=mistral model.sliding_window=64 parallel.context=2 trainer.devices=2 parallel.context_comm=a2a "
    "data.pack=true": "set parallel.context=1",
    "model.rope_scaling.beta_fast=16": "has no effect with model.rope_scaling.rope_type=llama3: remove it",
    "model.rope_scaling.rope_type=yarn model.rope_scaling.beta_slow=40": "below model.rope_scaling.beta_fast=32",
    "data.pack=true parallel.context=2 trainer.devices=2 parallel.context_comm=all_gather": "set parallel.context_comm",
    "data.packing=sequential": "data.packing=sequential needs data.pack=true",
    "data.pack=true objective.threshold_scope=row": "set data.packing=sequential, or objective.",
    # memory
    "trainer.offload_activations=4": "set trainer.offload_activations=3 or less",
    "trainer.offload_activations=2 trainer.recompute=full": "set trainer.offload_activations=0",
    "trainer.offload_activations=2 objective.detection_recompute=full": "set objective.detection_recompute=none",
    "longppl.context=100": "set longppl.evaluator=DIR",
    "longppl.evaluator=x trainer.val_interval=0": "set trainer.val_interval",
    "longppl.context=5000 longppl.evaluator=x trainer.val_interval=1": "set longppl.context=512 or less",
    "trainer.grad_dtype=bf16 trainer.precision=fp32": "set trainer.grad_dtype=fp32",
    "trainer.mlp_chunks=2": "set trainer.recompute=full, or trainer.mlp_chunks=1",
    "trainer.fp8=detection objective.name=ce": "has no effect with objective.name=ce, which detects nothing",
    "trainer.fp8=both trainer.precision=fp32": "set trainer.precision=bf16, or trainer.fp8=none",
    "trainer.fp8=detection lora.rank=16": "set lora.rank=0, or trainer.fp8=none",
    "trainer.fp8=both objective.name=longce objective.window=512 objective.stride=64": "with objective longce",
    "trainer.fp8=detection model.ffn_hidden_size=376": "must be a multiple of 16 * parallel.tensor=16",
    "trainer.fp8=detection data.seq_length=1000": "set data.seq_length=1008",
    "optim.offload=1.5": "set it to a number from 0 to 1",
    # the layout
    "parallel.tensor=4 trainer.devices=4": "set parallel.tensor to 1, 2",
    "parallel.tensor=2 trainer.devices=2 model.vocab_size=385": "set parallel.tensor to 1",
    "parallel.tensor=2 trainer.devices=2 model.ffn_hidden_size=383": "set parallel.tensor to 1",
    "parallel.sequence=true": "set parallel.sequence=false",
    "parallel.virtual_pipeline=2": "set parallel.virtual_pipeline=null",
    "parallel.pipeline=2 trainer.devices=2 parallel.virtual_pipeline=1": "set parallel.virtual_pipeline=null",
    "parallel.pipeline=3 trainer.devices=3": "set parallel.pipeline to 1, 2, 4",
    "parallel.pipeline=2 trainer.devices=2 parallel.virtual_pipeline=2 model.num_layers=6": (
        "set their product to 1, 2, 3, 6"
    ),
    "trainer.num_nodes=2": "set trainer.num_nodes=1",
    "trainer.devices=3 parallel.tensor=2": "set trainer.devices=4",
    "parallel.context=2": "set trainer.devices=2",
    # the batch
    "trainer.profile=true trainer.max_steps=3": "set trainer.max_steps=4 or more, or trainer.profile=false",
    "trainer.global_batch_size=7 trainer.micro_batch_size=2": "set trainer.global_batch_size=8",
    "trainer.global_batch_size=1 trainer.devices=4": "set trainer.global_batch_size=4",
    "parallel.pipeline=2 parallel.virtual_pipeline=2 trainer.devices=2 trainer.global_batch_size=5": (
        "set trainer.global_batch_size=6"
    ),
    # lengths
    "data.seq_length=200000": "set data.seq_length=131072 or less",
    "data.seq_length=1022 parallel.context=2 trainer.devices=2": "set data.seq_length=1024",
    "data.seq_length=1023 parallel.tensor=2 parallel.sequence=true trainer.devices=2": "set data.seq_length=1024",
    "data.seq_length=1020 parallel.context=2 parallel.tensor=2 parallel.sequence=true trainer.devices=4": (
        "2 * parallel.context * parallel.tensor = 8: set data.seq_length=1024"
    ),
    "data.seq_length=1023 model.max_positions=1023 parallel.context=2 trainer.devices=2": "set data.seq_length=1020",
    # objective and optimizer
    "objective.shift_lr=schedule": "set it to scheduled or to a number above 0",
    "objective.shift_lr=true": "set it to scheduled or to a number above 0",
    "objective.shift_lr=-1e-5": "set it to a number above 0",
    "compare_to=cdt": "set compare_to=null",
    "objective.name=sft compare_to=ce": "trains what objective.name=sft does",
    "objective.name=logo": "set data=preferences compare_to=null",
    "data.name=preferences data.path=rows": "set objective=logo compare_to=null",
    "data.name=preferences data.path=rows objective.name=logo compare_to=ce": "compare_to=ce with data.name",
    "data.name=preferences data.path=rows objective.name=logo data.pack=true": "set data.pack=false",
    "data.name=preferences data.path=rows objective.name=logo trainer.micro_batch_size=2": "a row holds a whole",
    "objective.name=longce objective.stride=0": "set it to a number above 0",
    "objective.name=longce data.seq_length=4096 objective.window=4097": "set objective.window=2048 or less",
    "compare_to.name=longce compare_to.window=2000": "set objective.window=512 or less, or data.seq_length",
    "compare_to.name=longce compare_to.beta=2": "compare_to=longce has no beta: it has gamma, name, stride, window",
    "compare_to=dpo": "compare_to=dpo does not exist: choose compare_to=cdt|cdt_longce|ce|logo|longce|sft",
    "objective.name=longce objective.window=8 parallel.context=2 trainer.devices=2 parallel.context_comm=all_gather": (
        "set parallel.context_comm=p2p or a2a"
    ),
    "optim.min_lr=1": "set optim.min_lr=1e-05 or less",
    "optim.warmup_steps=100": "set optim.warmup_steps=99 or less",
    "optim.beta2=1": "set it below 1",
    # adapters
    "lora.rank=8": "set init.hf=DIR, or lora=none",
    "lora.rank=-1": "lora.rank=-1: set it to 0 or more",
    "lora.alpha=8": "lora.alpha=8 has no effect with lora.rank=0: set lora.rank, or lora=none",
    "lora.targets=[linear_qkv]": "has no effect with lora.rank=0",
    "init.hf=llama lora.rank=8 lora.alpha=0": "lora.alpha=0: set it to a number above 0",
    "init.hf=llama lora.rank=8 lora.dropout=1": "lora.dropout=1.0: set it below 1",
    "init.hf=llama lora.rank=8 lora.targets=[]": "set it to some of linear_qkv,linear_proj,linear_fc1,linear_fc2",
    "init.hf=llama lora.rank=8 lora.targets=[linear_qkv,linear_qkv]": "linear_fc2, each once",
    "init.hf=llama lora.rank=3 parallel.tensor=2 trainer.devices=2": "set lora.rank=4",
    "init.hf=llama lora.rank=8 parallel.pipeline=2 parallel.virtual_pipeline=2 trainer.devices=2": (
        "parallel.virtual_pipeline=2 with lora.rank=8, of whose adapters NeMo would save none"
    ),
    "init.nemo=adapters model.tokenizer=byte": "`nemo-cdt convert adapters DIR` merges them",
    # data
    "data.hops=[5]": "set it to some of 1 to 4",
    "optim.lr=1e39": "optim.lr=1e+39: fp32 ends at 3.4e+38: set it lower",
    "study.samples=4": "study.samples=4 needs init.hf=DIR",
    "data.hops=[]": "set it to some of 1 to 4",
    "data.needles=1.5": "it is a share, so set it to 0 to 1",
    "data.name=jsonl data.path=null": "set data.path=FILE",
    "data.path=/not/there": "does not exist",
    "data.name=jsonl data.path=.": "data.path=. is no file",
    "data.name=jsonl data.path=rows data.validation_path=/not/there": "data.validation_path=/not/there does not exist",
    "data.name=jsonl data.path=empty": "data.path=empty is empty",
    "data.validation_samples=0 trainer.val_interval=5": "set trainer.val_interval=0",
    "data.validation_samples=63 trainer.val_interval=5": "set data.validation_samples=64",
    # where weights come from
    "init.hf=llama init.nemo=llama": "set one of them to null",
    "init.hf=/not/there": "init.hf=/not/there is no folder",
    "init.nemo=/not/there": "init.nemo=/not/there is no folder",
    "init.hf=.": "init.hf=. is no Hugging Face model",
    "init.hf=bert": "init.hf=bert is no Hugging Face model: bert is no Hugging Face model of llama, mistral",
    "init.hf=qwen2": "model.family=llama, model.qkv_bias=false, but init.hf=qwen2 has model.family=qwen2",
    "init.hf=wide": "but init.hf=wide has model.hidden_size=4096 model.num_query_groups=4: leave them out",
    "init.hf=llama parallel.tensor=2 trainer.devices=2": (
        "init.hf=llama has a vocabulary of 263, which parallel.tensor=2 does not divide: set parallel.tensor to 1"
    ),
    "init.hf=bare": "init.hf=bare holds weights without a tokenizer: set model.tokenizer to their tokenizer's folder",
    "init.nemo=llama": "set model.tokenizer to their tokenizer's folder, or to byte",
    "model.tokenizer=gpt2": "model.tokenizer=gpt2 is no folder",
    # where a run goes
    "output=old": "set resume=true to continue it, or another output",
    "output=rows/run": "is a file",
    "output=''": "output is empty",
    "output=headless": "has checkpoints, but no config.yaml that says of what: bring it back, or set another output",
    "output=headless resume=true": "has checkpoints, but no config.yaml",
    # nothing that a run reads may be where it writes
    "init.hf=llama output=llama": "output=llama is init.hf=llama: set output to a folder of the run's own",
    "init.hf=llama output=llama/run": "output=llama/run lies in init.hf=llama",
    "init.hf=mine/init model.tokenizer=byte output=mine": "output=mine holds init.hf=mine/init",
    "init.hf=llama output=link": "output=link is init.hf=llama",
    "model.tokenizer=mine/tokenizer output=mine": "output=mine holds model.tokenizer=mine/tokenizer",
    "data.name=jsonl data.path=mine/rows output=mine": "output=mine holds data.path=mine/rows",
    "data.name=jsonl data.path=rows data.validation_path=mine/rows output=./mine": "holds data.validation_path=mine/ro",
    "data.path=llama output=llama/a/run": "output=llama/a/run lies in data.path=llama",
    "init.nemo=o/checkpoints/last model.tokenizer=byte output=o": "output=o holds init.nemo=o/checkpoints/last",
    # an export takes nothing's place
    "export.hf=llama": "export.hf=llama is not empty, and no nemo_cdt_export.json says that config.json in it is this",
    "output=loop/run": "loop is a link that leads nowhere, set output to a folder",
    "output=o2 export.hf=loop": "loop is a link that leads nowhere, set export.hf to a folder",
    "output=new/../mine": "output=new/../mine goes through new, which is not there: set it to /",
    "output=o2 export.hf=o2/../llama": "llama is not empty, and no nemo_cdt_export.json says that config.json in it is",
    "export.hf=rows": "rows is a file, set export.hf to a folder",
    "init.hf=llama export.hf=./llama": "export.hf=llama is init.hf=llama: set another folder",
    "init.hf=llama export.hf=llama/hf": "export.hf=llama/hf lies in init.hf=llama",
    "data.path=mine/rows data.name=jsonl export.hf=mine": "export.hf=mine holds data.path=mine/rows",
    "output=o2 export.hf=o2": "export.hf=o2 is output=o2: set it to o2/hf, or to a folder outside",
    "output=up/o2 export.hf=up": "export.hf=up holds output=up/o2",
    "output=o2 export.hf=o2/checkpoints": "is where the run keeps its checkpoints: set it to o2/hf, or to a folder",
    "output=o2 export.hf=o2/x/../tensorboard/hf": "is where the run keeps its tensorboard",
    "output=o2 export.hf=o2/.preflight": "is where the run keeps its .preflight",
    "output=o2 export.hf=o2/job.json": "is where the run keeps its job.json",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_a_run_that_cannot_be_is_refused_in_one_line_that_names_the_key_and_the_way_out(tmp_path, overrides):
    (tmp_path / "rows").write_text("{}")
    (tmp_path / "empty").touch()
    models: dict[str, dict[str, Any]] = {
        "llama": {},
        "bert": {"architectures": ["BertModel"], "model_type": "bert"},
        "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
        "wide": {"hidden_size": 4096, "head_dim": 32, "num_key_value_heads": 4},
        "bare": {},
    }
    for name, more in models.items():
        write_described(tmp_path / name, Model(), **more)
        if name != "bare":
            (tmp_path / name / "tokenizer_config.json").write_text("{}")
    for folder in ("old", "mine/init", "mine/tokenizer", "o/checkpoints/last"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "old/config.yaml").touch()
    (tmp_path / "mine/rows").write_text("{}")
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "llama" / name, tmp_path / "mine/init" / name)
    (tmp_path / "link").symlink_to("llama")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "headless/checkpoints/step=1").mkdir(parents=True)
    (tmp_path / "adapters/weights").mkdir(parents=True)
    (tmp_path / "adapters/weights/adapter_metadata.json").touch()
    expected = REFUSED[overrides]

    with pytest.raises(ValueError, match=re.escape(expected)) as raised:
        validate(run(*overrides.split()))

    line = str(raised.value)
    assert "\n" not in line
    assert any(override.partition("=")[0].rpartition(".")[2] in line for override in overrides.split())


def test_resume_takes_up_a_run_or_starts_one(tmp_path):
    validate(run("output=new", "resume=true"))
    (tmp_path / "old/checkpoints/step=1").mkdir(parents=True)
    save(run("output=old", "export.hf=old/hf"), "old/config.yaml")
    with replacing(Path("old/hf"), Path("old")) as new:
        new.mkdir()
        (new / "config.json").touch()

    validate(run("output=old", "resume=true", "export.hf=old/hf"))


def test_a_folder_of_the_users_by_a_name_that_a_run_writes_is_not_taken_for_the_runs(tmp_path):
    (tmp_path / "mine/tokenizer").mkdir(parents=True)
    (tmp_path / "mine/init").mkdir()
    with pytest.raises(
        ValueError, match=r"output=mine has init, tokenizer, but no config\.yaml that says of which run"
    ):
        check_unused(run("output=mine"))
    save(run("output=mine"), "mine/config.yaml")
    check_unused(run("output=mine"))


def test_an_old_run_that_reads_from_its_own_folder_can_be_resumed(tmp_path):
    (tmp_path / "old/checkpoints/step=1").mkdir(parents=True)
    (tmp_path / "old/rows").write_text("{}")
    reads = ("output=old", "data.name=jsonl", "data.path=old/rows")
    save(run(*reads), "old/config.yaml")

    validate(run(*reads, "resume=true"))
    (tmp_path / "old/more").write_text("{}")
    with pytest.raises(ValueError, match=r"data\.path=old/more, but the run in output=old has old/rows"):
        validate(run(*reads[:-1], "data.path=old/more", "resume=true"))


@pytest.mark.parametrize("folder", ["run/hf", "run/models/hf", "hf", "run-hf"])
def test_an_export_beside_the_runs_own_folders_is_accepted(tmp_path, folder):
    validate(run("output=run", f"export.hf={folder}"))


def test_mistakes_that_have_nothing_to_do_with_each_other_are_told_together(capsys):
    given = ["optim.warmup_steps=100", "model.num_attention_heads=3", "init.hf=no"]
    given += ["data.name=jsonl", "data.path=nowhere"]
    with pytest.raises(ValueError, match=re.escape("optim.warmup_steps=100")) as raised:
        validate(run(*given))

    assert isinstance(raised.value, SeveralError)
    assert [line.partition("=")[0] for line in raised.value.lines] == [
        *("model.hidden_size", "optim.warmup_steps", "data.path", "init.hf"),
    ]
    with pytest.raises(SystemExit), reported():
        validate(run(*given))
    assert [line.partition(": ")[0] for line in capsys.readouterr().err.splitlines()] == ["error"] * 4


def test_numbers_that_are_none_are_told_together_and_before_what_is_computed_with_them():
    with pytest.raises(SeveralError) as raised:
        validate(run("trainer.devices=0", "trainer.global_batch_size=-1", "optim.lr=0"))

    assert [line.partition(":")[0] for line in raised.value.lines][:3] == [
        *("trainer.global_batch_size=-1", "trainer.devices=0", "optim.lr=0.0"),
    ]


def test_rows_that_are_all_held_out_are_said_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n\n' * 4)
    rows = ("data.name=jsonl", "data.path=rows.jsonl", "trainer.val_interval=1", "trainer.global_batch_size=4")
    with pytest.raises(ValueError, match=r"data\.validation_samples=4 leaves nothing of the 4 rows of rows\.jsonl to"):
        validate(run(*rows, "data.validation_samples=4"))
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n' * 5)
    validate(run(*rows, "data.validation_samples=4"))


@pytest.mark.parametrize(("version", "refused"), [("2.9.0", True), ("2.11.0", False), (None, False)])
def test_an_exchange_of_packed_rows_that_the_transformer_engine_here_has_not_is_refused(version, refused, monkeypatch):
    monkeypatch.setattr(layout, "_transformer_engine", lambda: version and Version(version))
    config = run("data.pack=true", "parallel.context=2", "trainer.devices=2", "parallel.context_comm=a2a")

    with pytest.raises(ValueError, match=r"from 2\.10 on, and here is 2\.9\.0") if refused else nullcontext():
        validate_layout(config)
