import os
import re
import subprocess
import sys
from dataclasses import is_dataclass

import pytest

from nemo_cdt.analysis.settings import Settings
from nemo_cdt.cli import main
from nemo_cdt.config import walk
from nemo_cdt.config.help import described
from nemo_cdt.prepare.settings import Prepare
from nemo_cdt.utils.streams import read_or_silent

HEAVY = {"torch", "nemo", "megatron", "transformers", "nemo_run"}


def test_doctor_prints_a_line_for_each_check_and_imports_nothing_that_it_judges():
    code = "import sys; from nemo_cdt.cli import main; status = main(['doctor']); print(*sys.modules); sys.exit(status)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    *lines, modules = done.stdout.splitlines()

    assert done.returncode == 0, done.stdout
    assert any(line.startswith("ok    nemo-toolkit 2.7.3, megatron-core 0.15.3") for line in lines)
    assert not HEAVY & set(modules.split())


@pytest.mark.parametrize("arguments", [["report", "nowhere"], ["convert", "nowhere", "somewhere"]])
def test_a_folder_that_is_not_there_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit) as exit:
        main(arguments)

    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("error: nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("verb", "schema"), [("analyze", Settings()), ("prepare", Prepare())])
def test_help_explains_every_key_and_imports_nothing_heavy(verb, schema):
    code = f"import sys; from nemo_cdt.cli import main\ntry: main(['{verb}', '--help'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    *lines, modules = done.stdout.splitlines()
    explained = {line.strip().partition("=")[0]: line for line in lines if re.match(r"  [a-z_.]+=\S", line)}

    assert done.returncode == 0
    assert list(explained) == [key for key, value in walk(schema) if not is_dataclass(value)]
    assert [line for line in explained.values() if not re.search(r"=('.*'|\S+) +\S", line)] == []
    assert max(map(len, lines)) <= 120
    assert not HEAVY & set(modules.split())


def test_help_writes_values_as_they_are_set():
    lines = "\n".join(described(Settings()))

    for text in ("model=null ", "data.seq_length=1024 ", "denoise.dtypes=[bf16,fp32] ", "denoise.lr=1e-05 "):
        assert f"  {text}" in lines
    assert "dtype=fp32                          the precision of weights and activations (bf16, fp32)" in lines
    assert "  workers=1 " in "\n".join(described(Prepare()))


def test_rows_that_are_not_there_are_said_before_anything_heavy_is_imported():
    code = "import sys; from nemo_cdt.cli import main\ntry: main(['inspect', 'no'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 2
    assert done.stderr.startswith("error: no does not exist: name a folder with summary.json")
    assert not HEAVY & set(done.stdout.split())


def test_without_a_verb_the_usage_is_shown(capsys):
    with pytest.raises(SystemExit) as exit:
        main([])

    assert exit.value.code == 2
    assert "usage: nemo-cdt" in capsys.readouterr().err


def test_what_needs_nemo_is_one_line_where_nemo_is_not_installed(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    blocked = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('nemo', 'nemo_run', 'lightning'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from nemo_cdt.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", blocked, "convert", str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: this needs NeMo, which is not installed (No module named 'nemo')")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", ["plan cluster.gpus=8", "inspect multihop tokens=null", "--help"])
def test_a_verb_that_nobody_reads_to_its_end_says_nothing_of_that(words):
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from nemo_cdt.cli import main; sys.exit(main())"
    command = [sys.executable, "-W", "ignore", "-c", code, *words.split()]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)

    assert (done.returncode, done.stderr) == (0, "")


def test_the_end_of_another_pipe_is_an_error():
    with pytest.raises(BrokenPipeError), read_or_silent():
        raise BrokenPipeError


@pytest.mark.parametrize(
    ("name", "said"), [("detektion", "did you mean detection?"), ("xyz", "choose one of ig, fr, ")]
)
def test_an_analysis_that_is_mistyped_is_told_what_there_is_by_its_name_of_now(capsys, name, said):
    with pytest.raises(SystemExit) as exit:
        main(["analyze", name])

    assert exit.value.code == 2
    assert f"there is no analysis {name}: {said}" in capsys.readouterr().err
