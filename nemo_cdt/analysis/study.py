"""``study.samples``: what a run's report tells beside its curves, of a pretrained model on questions of ``multihop``.

Before training: which method finds the facts. Before and after: how many of the validation's questions are answered
right, and what is written. All of it goes into ``OUTPUT/study.json``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from nemo_cdt.analysis.analyzed_model import AnalyzedModel, choose_device, load
from nemo_cdt.analysis.detection import METHODS, detection
from nemo_cdt.analysis.observe import observe_all, shown
from nemo_cdt.analysis.samples import CRITICAL, Sample, generated
from nemo_cdt.analysis.settings import Samples, Settings
from nemo_cdt.config import Config, Precision
from nemo_cdt.data.tokenizer import load_tokenizer
from nemo_cdt.evaluation.answers import greedy, is_right
from nemo_cdt.evaluation.model import read_config, read_model
from nemo_cdt.report.study import STUDY
from nemo_cdt.utils.atomic_write import atomic_write

WRITTEN = 3
"""Questions whose answers are written out."""
NEW_TOKENS = 12


def study(config: Config) -> None:
    """Asks ``init.hf`` and ``export.hf``, and writes ``study.json`` into the run's folder, whole or not at all."""
    assert config.init.hf is not None
    assert config.export.hf is not None
    before, after = Path(config.init.hf), Path(config.export.hf)
    tokenizer = load_tokenizer(config.model.tokenizer or config.init.hf)
    read, validated = read_config(before), config.data.validation_samples
    questions = generated(
        _asked(config, max(config.study.samples, validated)), tokenizer, read.vocab_size, config.trainer.seed
    )
    samples = [sample for _, sample in questions]
    analyzed = load(before, read, Precision.fp32, choose_device(config.trainer.accelerator))
    print(f"which method finds the facts, by {before} on {config.study.samples} questions", flush=True)
    found = {
        "samples": config.study.samples,
        "top_k": Settings().top_k,
        **_detection(analyzed, samples[: config.study.samples]),
    }
    model = analyzed.model
    model.gradient_checkpointing_disable()  # nothing is trained from here on, and what is written is cached
    right: dict[str, list[bool]] = {}
    written = [{"question": text.question, "answer": text.answer} for text, _ in questions[: min(WRITTEN, validated)]]
    for name, folder in (("before", before), ("after", after)):
        print(f"right answers {name} training, by {folder}", flush=True)
        if folder is after:
            model = read_model(folder, read_config(folder), Precision.fp32).to(model.device).eval()
        right[name] = right_answers(model, samples[:validated])
        for row, sample in zip(written, samples, strict=False):
            row[name] = tokenizer.decode(greedy(model, sample.prompt, NEW_TOKENS), skip_special_tokens=True)
    atomic_write(Path(config.output, STUDY), json.dumps({**found, "answers": right, "written": written}, indent=1))


def _asked(config: Config, samples: int) -> Samples:
    """The first of the questions that the run validates on."""
    length = config.data.document_length or config.data.seq_length
    return Samples(samples=samples, seq_length=length, path=config.data.path, **config.data.questions())


def _detection(analyzed: AnalyzedModel, samples: list[Sample]) -> dict[str, Any]:
    result = detection(observe_all(analyzed, samples, Settings().top_k), None, Settings().top_k)
    base = result.numbers["base_rate"]
    shares = {type.name: base[type.name]["mean"] for type in CRITICAL}
    methods = {METHODS[name]: found for name, found in result.numbers["all"].items()}
    return {"methods": methods, "base": shares, "blind": sum(shares.values())}


@torch.no_grad()
def right_answers(model: PreTrainedModel, samples: Sequence[Sample]) -> list[bool]:
    """Of each sample, whether greedy decoding writes its answer."""
    right = []
    for sample in shown(samples, "questions", len(samples)):
        ids, rows, answer = (
            torch.as_tensor(values, device=model.device) for values in (sample.input_ids, sample.rows, sample.answer)
        )
        logits = model(ids[None], logits_to_keep=rows, use_cache=False).logits[0].float()
        right.append(bool(is_right(logits, answer)))
    return right
