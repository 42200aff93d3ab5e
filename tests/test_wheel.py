"""The wheel in an environment of its own, used from an empty folder: nothing of the checkout is needed."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
SITE = ROOT / "tests/launch/site.yaml"
SOURCES = ("nemo_cdt", "conf", "pyproject.toml", "setup.py", "README.md", "LICENSE")
TINY = (
    *("compare_to=null", "trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.precision=fp32"),
    *("trainer.global_batch_size=2", "trainer.val_interval=0", "data.seq_length=640", "optim.warmup_steps=1"),
    *("model.num_layers=1", "model.hidden_size=32", "model.ffn_hidden_size=64", "model.num_attention_heads=2"),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:  # a copy, since setuptools leaves build/ where it builds
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """An environment with the wheel, and with what ours has except this package: pip would take minutes for that."""
    venv = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin/python"
    pip(python, "install", "--no-deps", "--no-index", wheel)
    paths = sysconfig.get_path("purelib", vars={"base": venv, "platbase": venv})
    # The .pth files of the folder that one of ours names are not read, and so no editable install is found.
    Path(paths, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


def pip(python, *arguments):
    command = [sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run([*map(str, command)], check=True, timeout=300)


@pytest.fixture
def nemo_cdt(python, tmp_path):
    def run(*arguments, code=0):
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [python.with_name("nemo-cdt"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return run


def test_it_holds_the_package_and_conf_and_nothing_else(wheel):
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {path for kind in ("*.py", "*.j2", "py.typed") for path in ROOT.glob(f"nemo_cdt/**/{kind}")}
    conf = {f"nemo_cdt/{path.relative_to(ROOT)}" for path in ROOT.glob("conf/**/*.yaml")}

    assert names == {str(path.relative_to(ROOT)) for path in package} | conf


def test_it_trains(nemo_cdt, tmp_path):
    nemo_cdt("train", *TINY)

    run = tmp_path / "runs/tiny"
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    assert (run / "report.html").exists()
    assert (run / "hf/model.safetensors").exists()


def test_it_shows_what_it_would_submit(nemo_cdt, tmp_path):
    at = ("compare_to=null", "trainer.num_nodes=2", "launcher.dryrun=true", f"launcher.site={SITE}")
    slurm = nemo_cdt("train", *at, "launcher=slurm", "launcher.submit=sbatch")
    kubernetes = nemo_cdt("train", *at, "launcher=kubernetes")

    assert "#SBATCH --nodes=2" in slurm
    assert "kind: Job" in kubernetes
    assert list(tmp_path.iterdir()) == []


def test_it_plans(nemo_cdt):
    found = nemo_cdt("plan", "model=llama31_8b", "data.seq_length=131072", "cluster.gpus=64")

    assert "experiment=rows_llama31_8b_32k model=llama31_8b" in found.splitlines()[-1]


def test_it_prepares_rows(nemo_cdt, tmp_path):
    rows = [{"text": f"{number} apples are more than {number - 1}. " * 4} for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    nemo_cdt("prepare", "jsonl", "input=rows.jsonl", "output=prepared", "tokenizer=byte", "validation_samples=2")

    assert json.loads((tmp_path / "prepared/summary.json").read_text())["train"]["documents"] == 18
