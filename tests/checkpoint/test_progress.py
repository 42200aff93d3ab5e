import os
import pty
import termios

import pytest
import torch

from nemo_cdt.checkpoint.progress import shown
from nemo_cdt.checkpoint.weights import Weights

TENSORS = {name: torch.full((1 << 18,), ord(name) * 1.0) for name in "ab"}


def read_all() -> None:
    with shown(Weights.of(TENSORS), "DIR is converted") as weights:
        assert dict(weights) == TENSORS


def test_a_line_at_each_end_where_there_is_no_terminal(capsys: pytest.CaptureFixture) -> None:
    read_all()
    first, last = capsys.readouterr().err.splitlines()
    assert first == "DIR is converted: 2 tensors, 0.00 GiB"
    assert last.startswith("DIR is converted: done in ")


def test_a_bar_of_bytes_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))  # in one of no lines tqdm shows nothing
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        read_all()
    assert b"0%|" in (said := os.read(ours, 1 << 16))
    assert b"/2.00M [" in said


def test_a_conversion_that_fails_is_not_called_done(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(KeyError), shown(Weights.of(TENSORS), "DIR is converted") as weights:
        weights["c"]
    assert "done" not in capsys.readouterr().err
