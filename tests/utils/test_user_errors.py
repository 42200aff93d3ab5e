import json

import pytest

from nemo_cdt.config import load
from nemo_cdt.utils.user_errors import first_line, reported


def test_a_value_error_that_we_raise_is_one_line_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("trainer: {max_step: 1}")

    with pytest.raises(SystemExit) as exit, reported():
        load(tmp_path / "config.yaml")

    assert exit.value.code == 2
    expected = f"error: {tmp_path}/config.yaml: Key 'max_step' not in 'Trainer'\n"
    assert capsys.readouterr().err == expected


def test_an_error_of_the_system_is_one_line_and_exit_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit, reported():
        (tmp_path / "missing").read_text()

    assert exit.value.code == 2
    assert capsys.readouterr().err == f"error: [Errno 2] No such file or directory: '{tmp_path}/missing'\n"


def test_an_error_of_the_system_under_a_run_on_a_cluster_is_no_mistake(tmp_path):
    with pytest.raises(FileNotFoundError), reported(files=False):
        (tmp_path / "missing").read_text()


def test_a_value_error_of_others_is_a_bug_and_keeps_its_traceback():
    with pytest.raises(json.JSONDecodeError), reported():
        json.loads("{")


@pytest.mark.parametrize(
    ("text", "expected"), [("one\n  two", "one"), ("\n one", "one"), ("", "RuntimeError"), (" ", "RuntimeError")]
)
def test_of_a_long_error_the_first_line_is_told_and_of_an_empty_one_its_type(text, expected):
    assert first_line(RuntimeError(text)) == expected
