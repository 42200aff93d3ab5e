"""``study.samples``: what a run's report tells beside its curves, of a pretrained model on questions of ``multihop``.

Before training: which method finds the facts. Before and after: how many of the validation's questions are answered
right, and what is written. All of it goes into ``OUTPUT/study.json``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from nemo_cdt.analysis.analyzed_model import choose_device, load
from nemo_cdt.analysis.detection import METHODS, detection
from nemo_cdt.analysis.observe import observe_all, shown
from nemo_cdt.analysis.samples import CRITICAL, Sample, load_samples
from nemo_cdt.analysis.settings import Samples, Settings
from nemo_cdt.config import Config, Precision
from nemo_cdt.data.multihop import MultihopDocuments
from nemo_cdt.data.tokenizer import load_tokenizer
from nemo_cdt.evaluation.answers import is_right
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
    found: dict[str, Any] = {
        "samples": config.study.samples,
        "top_k": Settings().top_k,
        **_detection(config, before, tokenizer),
    }
    found["answers"], found["written"] = _answers(config, before, after, tokenizer)
    atomic_write(Path(config.output, STUDY), json.dumps(found, indent=1))


def _asked(config: Config, samples: int) -> Samples:
    """The first of the questions that the run validates on."""
    length = config.data.document_length or config.data.seq_length
    return Samples(samples=samples, seq_length=length, path=config.data.path, **config.data.questions())


def _detection(config: Config, folder: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    read = read_config(folder)
    samples = load_samples(_asked(config, config.study.samples), tokenizer, read.vocab_size, config.trainer.seed)
    print(f"which method finds the facts, by {folder} on {len(samples)} questions", flush=True)
    analyzed = load(folder, read, Precision.fp32, choose_device(config.trainer.accelerator))
    result = detection(observe_all(analyzed, samples, Settings().top_k), None, Settings().top_k)
    base = result.numbers["base_rate"]
    shares = {type.name: base[type.name]["mean"] for type in CRITICAL}
    methods = {METHODS[name]: found for name, found in result.numbers["all"].items()}
    return {"methods": methods, "base": shares, "blind": sum(shares.values())}


def _answers(
    config: Config, before: Path, after: Path, tokenizer: PreTrainedTokenizerFast
) -> tuple[dict[str, list[bool]], list[dict[str, str]]]:
    asked = _asked(config, config.data.validation_samples)
    right: dict[str, list[bool]] = {}
    questions = _texts(asked, tokenizer, config.trainer.seed)
    written = [{"question": question, "answer": answer} for question, answer in questions]
    for name, folder in (("before", before), ("after", after)):
        read = read_config(folder)
        samples = load_samples(asked, tokenizer, read.vocab_size, config.trainer.seed)
        print(f"right answers {name} training, by {folder}", flush=True)
        model = read_model(folder, read, Precision.fp32).to(choose_device(config.trainer.accelerator)).eval()
        right[name] = right_answers(model, samples)
        for row, sample in zip(written, samples, strict=False):
            row[name] = goes_on(model, sample, tokenizer)
    return right, written


def _texts(asked: Samples, tokenizer: PreTrainedTokenizerFast, seed: int) -> list[tuple[str, str]]:
    documents = MultihopDocuments(
        tokenizer,
        seq_length=asked.seq_length,
        seed=seed,
        size=min(WRITTEN, asked.samples),
        haystack=asked.path,
        split="validation",
        **asked.questions(),
    )
    drawn = map(documents.sample, range(len(documents)))
    return [(sample.question, sample.answer) for sample in drawn]


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


@torch.no_grad()
def goes_on(model: PreTrainedModel, sample: Sample, tokenizer: PreTrainedTokenizerFast) -> str:
    """What the model writes where the answer belongs, greedily."""
    prompt = torch.as_tensor(sample.input_ids[: sample.rows[0] + 1], device=model.device)[None]
    how = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
    written = cast(Any, model).generate(prompt, attention_mask=torch.ones_like(prompt), **how)
    return tokenizer.decode(written[0, prompt.shape[1] :], skip_special_tokens=True)
