import pytest

from nemo_cdt.config.compose import options
from nemo_cdt.prepare.request import compose_prepare, read
from nemo_cdt.prepare.settings import SCHEMAS, sources


@pytest.mark.parametrize("name", options("prepare"))
def test_every_file_composes_and_is_valid(name, tmp_path):
    settings = compose_prepare(name, [])
    prefixes = sources(name, settings)
    inputs = [f"{prefix}.input={tmp_path}" if len(prefixes) > 1 else f"input={tmp_path}" for prefix in prefixes]

    read(name, ["output=out", "tokenizer=byte", *inputs])


def test_the_sets_are_the_files():
    assert {*options("prepare")} == {*SCHEMAS}


def test_the_papers_numbers():
    """Section 5.1 and Appendix D.1."""
    pg19, mix = compose_prepare("pg19", []), compose_prepare("alignment", [])

    assert (pg19.samples, pg19.seq_length) == (10_000, 64_000)
    assert (mix.longmit.samples, mix.longalpaca.samples) == (7_000, 1_000)
    assert mix.longmit.evidence == [2, 3, 4, 5, 6]
    assert {(source.min_tokens, source.max_tokens) for source in (mix.longmit, mix.longalpaca)} == {(16_000, 128_000)}


def test_the_parts_of_a_mix_are_the_sets_themselves():
    mix = compose_prepare("alignment", [])

    for name in ("longmit", "longalpaca"):
        alone = compose_prepare(name, [])
        assert vars(getattr(mix, name)).items() <= vars(alone).items()


GIVEN = {"output": "out", "tokenizer": "byte", "input": "."}
REFUSED = {
    ("pg19", "seq_lenght=5"): "unknown key seq_lenght: did you mean seq_length?",
    ("pg19", "seed=x"): "seed: Value 'x' of type 'str'",
    ("pg19", "output=null"): "output=null: set output=DIR",
    ("pg19", "tokenizer=null"): "tokenizer=null: set tokenizer=DIR",
    ("pg19", "input=null"): "input=null: set input to the data set's local copy",
    ("pg19", "input=nowhere"): "input=nowhere does not exist",
    ("pg19", "tokenizer=nowhere"): "tokenizer=nowhere is no folder: set it to a tokenizer's folder, or to byte",
    ("pg19", "workers=0"): "workers=0: set it to a number above 0",
    ("pg19", "seed=-1"): "seed=-1: set it to 0 or more",
    ("pg19", "samples=0"): "samples=0: set it above 0",
    ("pg19", "validation_samples=-1"): "validation_samples=-1: set it to 0 or more",
    ("pg19", "seq_length=1"): "seq_length=1: set it to 2 or more",
    ("longmit", "min_tokens=1"): "min_tokens=1: set it to 2 or more",
    ("longmit", "max_tokens=9"): "max_tokens=9 is below min_tokens=16000",
    ("longmit", "evidence=[2,2]"): "evidence=[2, 2]: set it to numbers above 0, each once",
    ("longmit", "languages=[]"): "languages=[] takes no row: set languages, or null for all",
    ("longmit", "fields.language=null"): "needs fields.language, the name of the field that tells it: set one, or "
    "languages=null",
    ("longmit", "fields.type=null"): "needs fields.type, the name of the field that tells it",
    ("longmit", "reasoning_prompt=null"): "reasoning_prompt=null: set what asks for a reasoning",
    ("longmit", "reasoning_prompt='{question}'"): "reasoning_prompt='{question}': it must write passages and question",
    ("longmit", "translations.zh.prompt=x"): "translations.zh.prompt='x': it must write passages and question",
    ("longmit", "lengths=[8000]"): "8000 is not above min_tokens=16000 and at most max_tokens=128000",
    ("longalpaca", "lengths=[20000]"): "needs fields.passages and fields.evidence, the lists to pick from",
    ("longmit", "fields.evidence=null"): "needs fields.evidence, the name of the field that tells it",
    ("longmit", "fields.answer=null"): "fields.answer=null: set it to a field of the rows",
    ("longmit", "prompt='{question}'"): "prompt='{question}': it must write passages and question in braces",
    ("longmit", "prompt='{question} {passages} {x}'"): "and nothing else but passages, question",
    ("longmit", "passage='{'"): "passage='{': ",
    ("longalpaca", "prompt='{question.x}'"): "prompt='{question.x}': it must write question in braces",
    ("alignment", "longmit.input=."): "longalpaca.input=null: set longalpaca.input",
    ("books", "seed=1"): "prepare books: choose one of pg19, longmit, longalpaca, alignment, jsonl",
}


@pytest.mark.parametrize(("name", "override"), REFUSED)
def test_what_cannot_be_is_refused_in_one_line_that_names_the_key(name, override, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {key: value for key, value in GIVEN.items() if key != "input" or name != "alignment"}
    key, _, value = override.partition("=")

    with pytest.raises(ValueError) as raised:  # noqa: PT011
        read(name, [f"{k}={v}" for k, v in {**given, key: value}.items()])

    assert REFUSED[name, override] in str(raised.value)
    assert "\n" not in str(raised.value)
