"""A study of a real folder through the launcher's door, beside what the analyses and transformers say of it alone."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from nemo_cdt.analysis.samples import load_samples
from nemo_cdt.analysis.settings import Samples
from nemo_cdt.analysis.study import NEW_TOKENS, right_answers, study
from nemo_cdt.cli import main
from nemo_cdt.config.compose import compose
from nemo_cdt.data.multihop import MultihopDocuments
from nemo_cdt.data.tokenizer import load_tokenizer
from nemo_cdt.evaluation.answers import greedy
from nemo_cdt.report.study import read_study
from tests.llama import random_hugging_face

VOCABULARY = 262  # of bytes
QUESTIONS = ["data.needles=1", "data.begun=true", "data.seq_length=768"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models of bytes: before and after."""
    root = tmp_path_factory.mktemp("models")
    model = compose(["experiment=tiny"]).model
    for name in ("before", "after"):
        random_hugging_face(model, VOCABULARY).save_pretrained(root / name)
        load_tokenizer("byte").save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def counted():
    """How often a model is read and a question drawn."""
    counts = Counter()

    def counting(name, function):
        def counted(*arguments, **named):
            counts[name] += 1
            return function(*arguments, **named)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MultihopDocuments, "_draw", counting("questions", MultihopDocuments._draw))
        read = AutoModelForCausalLM.from_pretrained
        patch.setattr(AutoModelForCausalLM, "from_pretrained", counting("models", read))
        yield counts


@pytest.fixture(scope="module")
def run(folders, counted):
    words = [f"init.hf={folders}/before", f"export.hf={folders}/after", f"output={folders}/run", "study.samples=4"]
    config = compose([*words, *QUESTIONS, "data.validation_samples=6", "trainer.accelerator=cpu", "compare_to=null"])
    Path(config.output).mkdir()
    counted.clear()
    study(config)
    assert counted == {"questions": 6, "models": 2}
    return config


def test_detection_is_what_analyze_says(run, folders, tmp_path):
    main(["analyze", "detection", f"model={folders}/before", *QUESTIONS, "data.samples=4", f"output={tmp_path / 'a'}"])
    expected = json.loads((tmp_path / "a/result.json").read_text())["numbers"]["all"]
    found = json.loads(Path(run.output, "study.json").read_text())["methods"]
    assert found == {
        "attention": expected["attention"],
        "gradient (CDT)": expected["gradient"],
        "information flow (IG)": expected["ig"],
    }


def test_answers_are_asked_of_the_questions_of_the_validation(run, folders):
    found = read_study(Path(run.output, "study.json"))
    assert (len(found.before), len(found.after), len(found.written)) == (6, 6, 3)
    assert [one.question.startswith("What is the secret word of") for one in found.written] == [True] * 3


def test_what_is_right_is_what_transformers_writes(folders):
    """A model is taught one answer by heart; it is right there, and elsewhere as greedy decoding is."""
    tokenizer = load_tokenizer("byte")
    asked = Samples(samples=3, seq_length=768, needles=1.0, begun=True)
    model = AutoModelForCausalLM.from_pretrained(folders / "before")
    samples = load_samples(asked, tokenizer, model.config.vocab_size, 42)
    ids, labels = torch.tensor(samples[0].input_ids)[None], torch.full((1, len(samples[0])), -100)
    sequence = torch.cat([ids, torch.tensor([[samples[0].answer[-1]]])], dim=1)
    labels = torch.full_like(sequence, -100)
    labels[0, samples[0].rows + 1] = torch.tensor(samples[0].answer)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=sequence, labels=labels).loss.backward()
        optimizer.step()
    right = right_answers(model.eval(), samples)
    assert right[0]
    for correct, sample in zip(right, samples, strict=True):
        answer = tokenizer.decode(sample.answer)
        assert tokenizer.decode(greedy(model, sample.prompt, NEW_TOKENS)).startswith(answer) is correct
