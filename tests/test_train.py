"""The recipe as a user starts it: a process, its exit code, its lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_cdt.config.compose import compose
from nemo_cdt.data.tokenizer import load_tokenizer
from tests.llama import random_hugging_face

RECIPE = Path(__file__).parents[1] / "recipes/cdt_llama31.py"
VERB = [sys.executable, "-c", "import sys; from nemo_cdt.cli import main; sys.exit(main())", "train"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def recipe(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(RECIPE), *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("trainer.max_step=5", "error: unknown key trainer.max_step: did you mean trainer.max_steps?\n"),
        ("+trainer.zzz=5 model=tiny", "error: unknown key trainer.zzz: trainer has max_steps,"),
        ("model=huge", "error: model=huge does not exist: choose model=init|llama31_70b|llama31_8b|"),
        ("trainer.max_steps=five", "error: trainer.max_steps: Value 'five' of type 'str'"),
        ("trainer.devices=3 parallel.tensor=2", "error: trainer.devices=3 * trainer.num_nodes=1 must be a multiple"),
        ("model=tiny data=jsonl data.path=/not/there", "error: data.path=/not/there does not exist\n"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_nothing(tmp_path, arguments, expected):
    done = recipe(*arguments.split())

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_each_mistake_is_a_line():
    done = recipe("trainer.max_step=5", "optim.lrr=1")

    assert done.returncode == 2
    assert done.stderr == (
        "error: unknown key trainer.max_step: did you mean trainer.max_steps?\n"
        "error: unknown key optim.lrr: did you mean optim.lr?\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--cfg", "job", "--resolve", "name=mine", "objective.beta=3"],
        ["trainer.max_step=5"],
        ["-m", "objective.beta=0,1", "output=all", "trainer.global_batch_size=0"],
        ["-m", "objective.beta=0,1", "model=huge"],
        ["--nosuch"],
        ["output=a b", "trainer.max_steps=five"],
    ],
    ids=" ".join,
)
def test_the_recipe_is_the_verb_train_as_a_script(arguments):
    script, verb = recipe(*arguments), subprocess.run([*VERB, *arguments], capture_output=True, text=True)

    usage = script.stderr.replace("cdt_llama31.py", "nemo-cdt train")
    assert (verb.returncode, verb.stdout) == (script.returncode, script.stdout)
    assert verb.stderr.split() == usage.split()


@pytest.mark.parametrize("command", ["recipe", "verb"])
def test_a_mistake_costs_no_import_of_torch(command):
    run = {
        "recipe": f"runpy.run_path({str(RECIPE)!r}, run_name='__main__')",
        "verb": "cli.main(['train', *sys.argv[1:]])",
    }[command]
    code = f"""
import runpy, sys
from nemo_cdt import cli
sys.argv = ["recipe", "trainer.global_batch_size=0"]
try:
    {run}
except SystemExit as exit:
    print(exit.code, *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    status, *modules = done.stdout.split()

    assert status == "2"
    assert not {"torch", "nemo", "megatron", "nemo_run", "transformers", "numpy"} & set(modules)


def test_help_shows_the_groups_and_every_key():
    done = recipe("--help")

    assert done.returncode == 0
    assert "demo, effect, language_modeling_llama31_8b_64k, rows_llama31_8b_32k" in done.stdout
    assert (
        "model: init, llama31_70b, llama31_8b, llama32_1b, llama3_8b, mistral_7b, qwen25_7b, qwen3_8b, tiny"
        in done.stdout
    )
    for key in ("threshold_scope: document", "virtual_pipeline: null", "checkpoint_interval:", "resume: false"):
        assert key in done.stdout


def test_cfg_job_prints_the_configuration_and_runs_nothing(tmp_path):
    done = recipe("--cfg", "job", "--resolve", "name=mine", "objective.beta=3.5")

    assert done.returncode == 0
    assert "beta: 3.5" in done.stdout
    assert "hf: runs/mine/hf" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--help", "--cfg job"])
def test_help_that_nobody_reads_to_its_end_says_nothing_of_that(tmp_path, flag):
    """As `--help | head` has it; here the reader is gone from the start, which is no matter of luck."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(RECIPE), *flag.split()]
    done = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)

    assert done.stderr == ""


def test_a_start_that_finds_a_mistake_leaves_its_output_free(tmp_path):
    done = recipe("data.seq_length=512", "compare_to=null", "trainer.accelerator=cpu")

    assert (done.returncode, done.stderr.splitlines()[-1][:45]) == (2, "error: data.seq_length=512 is too short for t")
    assert not (tmp_path / "runs/tiny").exists()


def test_a_row_that_is_found_to_be_too_long_when_it_is_read_leaves_no_trace_of_the_start(tmp_path):
    random_hugging_face(compose(["experiment=tiny"]).model, 262).save_pretrained(tmp_path / "model")
    load_tokenizer("byte").save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "too long " * 100}) + "\n")
    words = ["init.hf=model", "data=jsonl", "data.path=rows.jsonl", "data.seq_length=64", "output=out"]
    few = ["trainer.val_interval=0", "trainer.global_batch_size=1", "trainer.max_steps=1", "trainer.accelerator=cpu"]

    done = recipe(*words, *few)

    assert done.returncode == 2
    assert "error: rows.jsonl:1: 900 tokens are more than data.seq_length + 1 = 65" in done.stderr
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name != ".lock"]


def test_a_copied_run_does_not_go_on_in_the_folder_that_it_is_a_copy_of(tmp_path):
    text = recipe("--cfg", "job", "--resolve", "output=first", "compare_to=null", "trainer.accelerator=cpu").stdout
    for name in ("first", "second"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(text)
    of_second = ("--config-path", "second", "--config-name", "config", "resume=true")

    refused, stated = recipe(*of_second), recipe(*of_second, "output=third", "trainer.seed=-1")

    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == (
        f"error: {tmp_path}/second/config.yaml says output=first, and lies in another folder, a copy of that run: set "
        f"output={tmp_path}/second to go on with the copy, or output=first with that run"
    )
    assert stated.stderr.splitlines()[-1].startswith("error: trainer.seed=-1")


def test_the_points_of_a_sweep_have_folders_of_their_own_in_output(tmp_path):
    """Both points are refused, because a run is there: the line names the folder."""
    for beta in (0, 1):
        point = tmp_path / f"all/objective.beta={beta}"
        point.mkdir(parents=True)
        (point / "config.yaml").touch()

    for beta in (0, 1):
        done = recipe("-m", f"objective.beta={beta},7", "output=all", "trainer.seed=3")

        assert done.returncode == 2
        assert done.stderr.startswith(f"error: output=all/objective.beta={beta} already holds a run")
