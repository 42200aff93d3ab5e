"""Scripts of Slurm: golden, read by bash, and with what the run and the site say."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_cdt.config import typed
from nemo_cdt.launch.jobs import render
from nemo_cdt.launch.slurm.sbatch import script
from tests.launch.composed import AWAY, EXPERIMENTS, MODEL, run

ROOT = Path(__file__).parents[3]
CASES = {
    "slurm_chain": ["launcher.submit=sbatch", "launcher.chain=3", "launcher.time=4:00:00", "launcher.qos=long"],
    "slurm_pyxis": [
        "launcher.submit=sbatch",
        "launcher.image=nvcr.io/nvidia/nemo:25.11",
        "launcher.mounts=[/lustre/data:/data]",
        "launcher.fabric=ethernet",
        "launcher.interface=eth0",
        "launcher.array=1-4%2",
        "launcher.exclusive=true",
    ],
    "slurm_nemo_run": [
        "launcher.submit=nemo_run",
        "launcher.image=nvcr.io/nvidia/nemo:25.11",
        "launcher.mounts=[/lustre/data:/data]",
        "launcher.chain=2",
    ],
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own: a checkout in which somebody ran the demo holds runs/tiny."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    """NeMo-Run's shell reads it, and pytest's stand-in does not let it."""
    monkeypatch.setattr("sys.stdin", io.StringIO())


@pytest.mark.parametrize("case", CASES)
def test_the_scripts_of_four_nodes_are_the_golden_ones(case, is_golden):
    nodes = ("experiment=rows_llama31_8b_32k", "trainer.num_nodes=4", "parallel.context=4")
    text = render(run(*AWAY, *nodes, *MODEL, "launcher.dryrun=true", *CASES[case]))

    scripts, configuration = text.split("\n# /lustre/me/runs/rows_llama31_8b_32k/config.yaml:\n")
    is_golden(f"{case}.sh", scripts)
    read = typed(OmegaConf.create(configuration.replace("# ", "")))
    assert (read.resume, read.launcher.dryrun, read.trainer.num_nodes) == (True, False, 4)


@pytest.mark.parametrize("submit", ["sbatch", "nemo_run"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_renders_a_script_that_bash_reads(submit, experiment):
    config = run(*AWAY, f"experiment={experiment}", *MODEL, f"launcher.submit={submit}", "launcher.dryrun=true")

    text = render(config)

    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).stderr == ""
    assert f"-m nemo_cdt.launch.node /lustre/me/{config.output}/config.yaml" in text


def test_a_value_of_the_environment_is_one_word_whatever_is_in_it(tmp_path):
    evil = 'a\'b "c" $HOME `id` ; touch pwned'
    config = run(*AWAY, "launcher.submit=sbatch")
    config.launcher.env["EVIL"] = evil

    exports = "\n".join(line for line in script(config).splitlines() if line.startswith("export "))
    done = subprocess.run(["bash"], input=f'{exports}\nprintf %s "$EVIL"', text=True, capture_output=True, cwd=tmp_path)

    assert done.stdout == evil
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "rendered"),
    [
        ("nemo.sqsh", "/lustre/me/nemo.sqsh"),
        ("images/nemo.sqsh", "/lustre/me/images/nemo.sqsh"),
        ("/images/nemo", "/images/nemo"),
        ("nvcr.io/nvidia/nemo:25.11", "nvcr.io#nvidia/nemo:25.11"),
        ("nvcr.io#nvidia/nemo:25.11", "nvcr.io#nvidia/nemo:25.11"),
        ("localhost:5000/nemo", "localhost:5000#nemo"),
        ("docker://nvcr.io/nvidia/nemo", "nvcr.io#nvidia/nemo"),
        ("dockerd://nemo-cdt:1", "dockerd://nemo-cdt:1"),
        ("nvidia/cuda:13.0", "nvidia/cuda:13.0"),
        ("ubuntu", "ubuntu"),
    ],
)
@pytest.mark.parametrize("submit", ["sbatch", "nemo_run"])
def test_an_image_is_a_file_from_the_root_on_or_of_a_registry_as_enroot_has_it(given, rendered, submit):
    config = run(*AWAY, f"launcher.image='{given}'", f"launcher.submit={submit}", "launcher.dryrun=true")

    assert re.search(rf"--container-image[ =]{re.escape(rendered)}[ ']", render(config))


@pytest.mark.parametrize("submit", ["sbatch", "nemo_run"])
def test_srun_gets_the_cpus_that_the_job_has(submit):
    config = run(*AWAY, "launcher.cpus_per_task=16", f"launcher.submit={submit}", "launcher.dryrun=true")

    assert re.search(r"^srun .*--cpus-per-task=16", render(config), re.MULTILINE)


def test_a_key_that_the_command_line_states_wins_over_the_site_even_where_it_is_none(tmp_path):
    (tmp_path / "site.yaml").write_text("slurm: {account: a, partition: p, image: /i.sqsh, mounts: [/a:/b], qos: q}")
    given = ("launcher.image=null", "launcher.mounts=[]", f"launcher.site={tmp_path}/site.yaml", "launcher.dryrun=true")
    command = [sys.executable, str(ROOT / "recipes/cdt_llama31.py"), "launcher=slurm", "launcher.submit=sbatch", *given]

    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)

    assert done.returncode == 0, done.stderr
    assert "--container" not in done.stdout
    assert "#SBATCH --qos=q" in done.stdout
    assert done.stderr == ""


def test_a_path_that_nemo_run_would_garble_is_refused():
    garbled = (*AWAY[:-1], "launcher.workdir=/lustre/nemo_runs", "launcher.dryrun=true")

    with pytest.raises(
        ValueError, match=r"for /nemo_run into /lustre/nemo_runs/runs/tiny/config.yaml: set launcher.sub"
    ):
        render(run(*garbled))
    assert "/lustre/nemo_runs/runs/tiny/config.yaml" in render(run(*garbled, "launcher.image=nemo"))
