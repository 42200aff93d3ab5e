import subprocess
import sys

import pytest

from nemo_cdt.analysis.measures import Measure
from nemo_cdt.analysis.settings import Source, read
from nemo_cdt.config import Precision


@pytest.fixture
def given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    return ["model=model", "output=out"]


def test_overrides_are_those_of_hydra(given):
    settings = read(
        Measure.denoise, [*given, "data=multihop", "denoise.strengths=[1e-4,1]", "dtype=bf16", "data.seq_length=8192"]
    )

    assert settings.denoise.strengths == [1e-4, 1.0]
    assert (settings.dtype, settings.data.name, settings.data.seq_length) == (Precision.bf16, Source.multihop, 8192)


@pytest.mark.parametrize(
    ("measure", "overrides", "expected"),
    [
        ("ig", ["topk=3"], "unknown key topk: did you mean top_k?"),
        ("ig", ["data.length=3"], "unknown key data.length: did you mean data.seq_length?"),
        ("ig", ["+data.pack=true"], "unknown key data.pack: data has hops, needles,"),
        ("ig", ["top_k=many"], "top_k: Value 'many' of type 'str' could not be converted to Integer"),
        ("ig", ["dtype=fp16"], "dtype: Invalid value 'fp16', expected one of \\[bf16, fp32\\]"),
        ("ig", ["data=text"], "data.name: Invalid value 'text', expected one of \\[multihop, jsonl\\]"),
        ("ig", ["output=null"], "set output=DIR: the folder that analyze ig writes"),
        ("ig", ["output=model/.."], "output=model/.. already exists and is not empty"),
        ("ig", ["model=null"], "analyze ig needs model=: set model=PATH"),
        ("ig", ["model=nowhere"], "model=nowhere: no such folder"),
        ("attention_map", [], "analyze attention_map needs model= and compare=: set compare=PATH"),
        ("significance", ["predictions=a"], "predictions=a: no such file"),
        ("fr", ["top_k=0"], "top_k=0 must be at least 1"),
        ("longppl", ["longppl.window=0"], "longppl.window=0 must be at least 1"),
        ("ig", ["data.hops=[5]"], r"data.hops=\[5\]: set it to some of 1 to 4"),
        ("ig", ["data=jsonl", "data.path=x", "data.begun=true"], "data.begun: only data=multihop generates questions"),
        ("ig", ["data=jsonl"], "data=jsonl needs data.path=FILE"),
        ("denoise", ["denoise.rhos=[0.1,-1]"], r"denoise.rhos=\[0.1, -1.0\] must be positive"),
        ("denoise", ["denoise.dtypes=[]"], "denoise needs a denoise.dtypes"),
    ],
)
def test_a_mistake_is_one_line(given, measure, overrides, expected):
    with pytest.raises(ValueError, match=expected) as raised:
        read(Measure(measure), [*given, *overrides])

    assert "\n" not in str(raised.value)


def test_settings_are_checked_without_torch():
    code = """
import sys
from nemo_cdt.cli import main
try:
    main(["analyze", "ig", "model=nowhere", "output=out"])
finally:
    print(*({"torch", "transformers", "matplotlib"} & {*sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (2, "\n")
    assert done.stderr == "error: model=nowhere: no such folder\n"
