"""Terminals as one finds them."""

import subprocess
import sys

PRINTED = """
from nemo_cdt.utils.streams import sound_streams
sound_streams()
import os, pathlib, subprocess, sys
with open(sys.argv[1], "w") as file:
    print("naïve ‖δ‖")
    subprocess.run(["echo", "a child"], check=True)
    file.write("whole")
print("naïve ‖δ‖", file=sys.stderr)
"""


def test_a_closed_stdout_is_written_to_by_nobody(tmp_path):
    command = f"exec {sys.executable} -c '{PRINTED}' {tmp_path / 'file'} >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True)

    assert (done.returncode, done.stderr) == (0, "naïve ‖δ‖\n")
    assert (tmp_path / "file").read_text() == "whole"


def test_an_alphabet_without_our_characters_gets_their_numbers(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PRINTED, str(tmp_path / "file")],
        env={"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stderr) == (0, "na\\xefve \\u2016\\u03b4\\u2016\n")
    assert sorted(done.stdout.splitlines()) == ["a child", "na\\xefve \\u2016\\u03b4\\u2016"]
