import subprocess
import sys

import pytest

from nemo_cdt.cli import main

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


def test_without_a_verb_the_usage_is_shown(capsys):
    with pytest.raises(SystemExit) as exit:
        main([])

    assert exit.value.code == 2
    assert "usage: nemo-cdt" in capsys.readouterr().err
