"""``nemo-cdt analyze`` end to end, on a tiny model of bytes that is made here."""

import json
import shutil
from html.parser import HTMLParser

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nemo_cdt.analysis import analyzed_model
from nemo_cdt.analysis.measures import Measure
from nemo_cdt.cli import main
from nemo_cdt.data.tokenizer import byte_tokenizer

SIZES = {
    "vocab_size": 262,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
DATA = ["data=multihop", "data.samples=2", "data.seq_length=900"]
EXTRA = {
    "longppl": ["longppl.context=600", "longppl.window=128", "longppl.alpha=-9", "longppl.beta=-99"],
    "detection": ["longppl.context=600", "longppl.window=128", "longppl.alpha=-9", "longppl.beta=-99"],
    "denoise": ["denoise.strengths=[1e-3]", "denoise.rhos=[0.1]", "denoise.optimizer=sgd"],
    "attention_map": ["compare=after", "attention_map.chunks=12"],
    "checkpoints": ["model=run"],
    "significance": ["predictions=ours.jsonl", "baseline=theirs.jsonl"],
}
PICTURES = {
    "ig": {"ig_by_type", "ig_by_layer"},
    "fr": {"fr_by_type"},
    "gradient": {"gradient_by_type", "gradient_and_ig"},
    "longppl": {"longppl_by_type"},
    "detection": {"detection"},
    "denoise": {"denoised_gradient", "denoised_relative", "trained_gradient", "trained_relative"},
    "checkpoints": {"auc", "attention_share", "ig_share"},
    "attention_map": {"map_before", "map_after"},
    "significance": {"differences"},
}


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.text, self.links = "", []
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text += f" {data}"


def save(folder, seed: int) -> None:
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """``model`` and ``after``: Hugging Face folders.  ``run``: two checkpoints, which convert to those two."""
    folder = tmp_path_factory.mktemp("models")
    save(folder / "model", 0)
    save(folder / "after", 1)
    for name, step in (("model", 3), ("after", 12)):
        shutil.copytree(folder / name, folder / f"run/checkpoints/step={step}/weights")
    for name, score in (("ours", 1.0), ("theirs", 0.5)):
        rows = [json.dumps({"id": index, "score": score * (index % 3)}) for index in range(12)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture
def here(models, monkeypatch, tmp_path):
    monkeypatch.chdir(models)
    # Checkpoints are Hugging Face folders already here; conversion is tested in tests/nemo/test_convert.py.
    monkeypatch.setattr(
        analyzed_model,
        "export_huggingface",
        lambda checkpoint, folder: shutil.copytree(checkpoint / "weights", folder, dirs_exist_ok=True),
    )
    return tmp_path


@pytest.mark.parametrize("measure", Measure)
def test_a_measure_writes_numbers_pictures_and_a_page(here, measure, capsys):
    overrides = ["model=model", *DATA, *EXTRA.get(measure, []), f"output={here / 'out'}"]
    assert main(["analyze", measure, *overrides]) == 0

    out, page = here / "out", Page((here / "out/report.html").read_text())
    result = json.loads((out / "result.json").read_text())
    command = f"nemo-cdt analyze {measure} model=model"
    assert capsys.readouterr().out == f"{out / 'report.html'}\n"
    assert {path.stem for path in out.glob("*.png")} == PICTURES[measure]
    assert len(page.links) == len(PICTURES[measure])
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert command in page.text
    assert f"output={out}-again" in page.text
    assert result["command"].startswith(command)
    assert result["numbers"]
    assert "nan" not in page.text.replace("nanosecond", "")
    if measure is not Measure.significance:
        assert "token type what it is tokens of a sample share of the context" in page.text
        assert [sample["sample"] for sample in result["samples"]] == ["sample 0", "sample 1"]


SUPPORTING_ONLY = {
    "messages": [
        {"role": "user", "content": "Mary went to the hall. Rain falls on the roof. Where is Mary?"},
        {"role": "assistant", "content": "hall"},
    ],
    "spans": [{"message": 0, "start": 0, "end": 22, "type": "supporting"}],
}


@pytest.mark.parametrize("measure", sorted({*Measure} - {Measure.significance}))
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_rows_of_two_types_are_measured_without_a_word_of_numpys(here, measure):
    (here / "rows.jsonl").write_text(json.dumps(SUPPORTING_ONLY) + "\n" + json.dumps(SUPPORTING_ONLY))
    data = ["data=jsonl", f"data.path={here / 'rows.jsonl'}"]
    some = ["longppl.context=20", "longppl.window=8"] if measure in ("longppl", "detection") else []

    overrides = ["model=model", *data, *EXTRA.get(measure, []), *some, f"output={here / 'out'}"]
    assert main(["analyze", measure, *overrides]) == 0

    page = Page((here / "out/report.html").read_text())
    if measure in ("ig", "fr", "gradient"):
        result = json.loads((here / "out/result.json").read_text())["numbers"]
        assert result["share_if_blind"]["mean"] == 0.5
        assert "a token, supporting fact (50 % if blind)" in page.text
        assert "interference fact (" not in page.text
    if measure == "checkpoints":
        assert "a share of 0.5." in page.text


def test_where_no_answer_is_right_the_console_and_the_page_say_what_the_model_writes(here, capsys):
    main(["analyze", "ig", "model=model", *DATA, f"output={here / 'out'}"])

    line = 'None of the 2 answers is what greedy decoding writes (to sample 0 it writes "'
    assert f"note: {line}" in capsys.readouterr().err
    assert line in Page((here / "out/report.html").read_text()).text


def test_without_a_key_token_longppl_has_no_auc_and_one_sample_no_interval(here):
    words = ["model=model", "data=multihop", "data.samples=1", "data.seq_length=900", f"output={here / 'out'}"]
    main(["analyze", "detection", *words])

    page = Page((here / "out/report.html").read_text()).text
    assert "— AUC of LongPPL: no key token" in page
    assert "mean over 1 sample." in page
    assert "[" not in page.partition("What the top 30 are")[2].partition("Token types")[0]


def test_where_an_answer_is_right_nothing_is_said_of_format(here, capsys):
    prompt, llama = [72, 105, 33, 32], LlamaForCausalLM.from_pretrained("model")
    (written,) = llama.generate(torch.tensor([prompt]), max_new_tokens=1, do_sample=False)[0, 4:].tolist()
    row = {
        "input_ids": [*prompt, written],
        "labels": [*[-100] * 4, written],
        "token_types": ["irrelevant"] * 5,
    }
    (here / "rows.jsonl").write_text(json.dumps(row))

    main(["analyze", "fr", "model=model", "data=jsonl", f"data.path={here / 'rows.jsonl'}", f"output={here / 'out'}"])

    assert "None of the" not in capsys.readouterr().err
    assert "1 of 1 correct" in Page((here / "out/report.html").read_text()).text


def test_checkpoints_are_in_the_order_of_their_steps_and_the_measure_has_its_name_of_before(here, capsys):
    main(["analyze", "em", "model=run", *DATA, f"output={here / 'out'}"])
    by_group = json.loads((here / "out/result.json").read_text())["numbers"]["checkpoints"]
    found = by_group["all"]

    assert "analyze em is called analyze checkpoints now" in capsys.readouterr().err
    assert by_group["wrong"] == found
    assert [one["loss"]["samples"] for one in by_group["correct"]] == [0, 0]
    assert [one["step"] for one in found] == [3, 12]
    assert found[0]["loss"] != found[1]["loss"]


def test_progress_is_told_and_settings_are_kept(here, capsys):
    main(["analyze", "ig", "model=model", *DATA, "top_k=7", "dtype=bf16", f"output={here / 'out'}"])
    result = json.loads((here / "out/result.json").read_text())

    assert "samples: 1 of 2\nsamples: 2 of 2\n" in capsys.readouterr().err
    main(["analyze", "denoise", "model=model", *DATA, *EXTRA["denoise"], f"output={here / 'steps'}"])
    assert "settings of denoising in bf16: 1 of 6\n" in capsys.readouterr().err
    assert (result["settings"]["top_k"], result["settings"]["dtype"]) == (7, "bf16")
    assert "CPU, bf16" in result["facts"]["Device"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.seq_length=50"], "data.seq_length=50 is too short for the facts: set at least"),
        (["model=run/checkpoints"], "model=run/checkpoints is no Hugging Face folder"),
        (["data=jsonl", "data.path=ours.jsonl"], "ours.jsonl:1: has ['id', 'score']; a sample has 'text',"),
        (["tokenizer=nowhere"], "tokenizer=nowhere: no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(here, capsys, overrides, expected):
    with pytest.raises(SystemExit) as exit:
        main(["analyze", "ig", "model=model", *DATA, *overrides, f"output={here / 'out'}"])

    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {expected}")
    assert list(here.iterdir()) == []


def test_a_sequence_that_does_not_fit_is_one_line_before_the_weights_are_read(here, capsys, monkeypatch):
    monkeypatch.setattr("nemo_cdt.analysis.memory.free_bytes", lambda device: 1_000_000)
    with pytest.raises(SystemExit):
        main(["analyze", "ig", "model=model", *DATA, f"output={here / 'out'}"])

    assert "tokens, which need about 0.0 GiB, and 0.0 are free: at most" in capsys.readouterr().err


def test_models_of_other_shapes_are_not_compared(here, models, capsys):
    LlamaForCausalLM(LlamaConfig(**SIZES | {"num_hidden_layers": 3})).save_pretrained(here / "deeper")
    with pytest.raises(SystemExit):
        main(["analyze", "attention_map", "model=model", f"compare={here / 'deeper'}", *DATA, f"output={here / 'out'}"])

    assert "deeper has other layers or another vocabulary than model=model" in capsys.readouterr().err
