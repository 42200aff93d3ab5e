"""Loggers that cannot be are refused in one line, before anything heavy is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_cdt.config.compose import compose
from nemo_cdt.config.loggers import Loggers, TensorBoard
from nemo_cdt.validation.loggers import check_loggers, logger_blockers

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ([], ["tensorboard"]),
        (["logger=wandb"], ["wandb"]),
        (["logger=[tensorboard,wandb]", "logger.wandb.project=mine"], ["tensorboard", "wandb"]),
        (["logger=[mlflow,wandb,tensorboard]"], ["tensorboard", "wandb", "mlflow"]),
        (["logger=none"], []),
        (["logger=[]"], []),
    ],
)
def test_loggers_are_chosen_as_hydra_chooses_several_of_a_group(words: list[str], chosen: list[str]) -> None:
    config = compose(words)
    check_loggers(config)
    assert config.logger.chosen == chosen


def test_the_default_logger_has_no_settings_of_others() -> None:
    assert compose([]).logger == Loggers(tensorboard=TensorBoard(use=True))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["logger=wandbb"], r"^logger=wandbb does not exist: choose logger=mlflow\|none\|tensorboard\|wandb$"),
        (["logger=[wandb,foo]"], r"^logger=foo does not exist: choose logger=mlflow\|none\|tensorboard\|wandb$"),
        (["logger=[wandb,none, wandb]"], r"^logger=\[wandb,none, wandb\] has wandb more than once: leave one out$"),
        (["logger=null"], r"^logger=null is no option: choose logger=mlflow\|none\|tensorboard\|wandb, or leave it"),
        (["logger=wandb", "logger.wandb.api_key=1"], r"^unknown key logger\.wandb\.api_key: logger\.wandb has use, "),
        (["logger.wandb.project=a"], r"^logger\.wandb\.project=a has no effect without logger=wandb: add it, or"),
        (["logger=wandb", "logger.wandb.project=''"], r"^logger\.wandb\.project is empty: set it, or leave it out$"),
        (["logger=wandb", f"logger.wandb.tags=[{KEY}]"], r"^logger\.wandb\.tags holds a password, .*`wandb login`"),
        (
            ["logger=mlflow", 'logger.mlflow.tracking_uri="https://me:pass@host"'],
            r"^logger\.mlflow\.tracking_uri holds a password, .*: set MLFLOW_TRACKING_USERNAME and",
        ),
    ],
)
def test_what_cannot_be_is_one_line_without_the_password(words: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as error:
        check_loggers(compose(words))
    assert KEY not in str(error.value)
    assert "pass@" not in str(error.value)


def test_a_missing_package_is_one_line_before_nemo_is_imported(tmp_path: Path) -> None:
    code = """
        import sys
        from importlib import util
        there = util.find_spec
        util.find_spec = lambda name: None if name in ("wandb", "sqlalchemy") else there(name)
        from nemo_cdt.cli import main
        try:
            main(["train", "logger=[wandb,mlflow]", "output=run"])
        finally:
            print([name for name in ("torch", "nemo", "wandb", "mlflow") if name in sys.modules])
    """
    lines = "\n".join(line[8:] for line in code.splitlines())
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    wandb, sql = done.stderr.splitlines()
    assert wandb == (
        "error: logger=wandb needs the package wandb, which is not installed: pip install 'nemo-cdt[wandb]', or leave "
        "wandb out of logger"
    )
    assert "package sqlalchemy" in sql
    assert "nemo-cdt[mlflow]" in sql
    assert not (tmp_path / "run").exists()


def test_without_a_key_of_weights_and_biases_a_run_does_not_begin(tmp_path: Path) -> None:
    code = """
import sys
from nemo_cdt.cli import main
try:
    main(["train", "logger=wandb", "output=run"])
finally:
    print([name for name in ("torch", "nemo", "wandb") if name in sys.modules])
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment["HOME"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert done.stderr == (
        "error: logger=wandb has no API key: run `wandb login`, or set WANDB_API_KEY in your shell, or set "
        "logger.wandb.offline=true\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("known", ["WANDB_API_KEY", ".netrc", "WANDB_MODE", "logger.wandb.offline=true"])
def test_a_key_may_be_in_the_shell_or_in_netrc_and_offline_needs_none(
    known: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(logger_blockers(compose(["logger=wandb"]))) == 1
    if known == ".netrc":
        (tmp_path / known).touch()
    elif known.isupper():
        monkeypatch.setenv(known, "offline")
    assert logger_blockers(compose(["logger=wandb", *[known] * ("=" in known)])) == []


def test_a_server_of_mlflow_needs_no_database_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_cdt.validation.loggers._installed", lambda name: name != "sqlalchemy")
    assert len(logger_blockers(compose(["logger=mlflow"]))) == 1
    assert logger_blockers(compose(["logger=mlflow", "logger.mlflow.tracking_uri=http://host"])) == []


def test_a_folder_named_wandb_is_no_package(tmp_path: Path) -> None:
    """Weights & Biases makes one where it is run."""
    (tmp_path / "wandb").mkdir()
    code = """
import sys
from nemo_cdt.validation.loggers import _installed
sys.path = ["."]
print(_installed("wandb"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "False\n", done.stderr
