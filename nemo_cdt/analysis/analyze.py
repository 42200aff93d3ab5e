"""``nemo-cdt analyze``: load, observe, measure, write. A folder that is there whole or not at all."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from nemo_cdt.analysis import memory, page, scores
from nemo_cdt.analysis.analyzed_model import (
    AnalyzedModel,
    checkpoints,
    choose_device,
    load,
    opened,
    read_tokenizer,
)
from nemo_cdt.analysis.attention_map import attention_map, choose_layer, maps
from nemo_cdt.analysis.checkpoints import across_checkpoints, moments
from nemo_cdt.analysis.denoising import BEFORE
from nemo_cdt.analysis.denoising_report import denoising, report
from nemo_cdt.analysis.detection import detection
from nemo_cdt.analysis.format_surprise import format_notice
from nemo_cdt.analysis.longppl import longppl
from nemo_cdt.analysis.measures import Measure
from nemo_cdt.analysis.observe import Observation, observe_all, shown
from nemo_cdt.analysis.result import Result
from nemo_cdt.analysis.samples import Sample, check_rows, load_samples
from nemo_cdt.analysis.settings import Optimizer, Settings, Source
from nemo_cdt.analysis.significance import significance
from nemo_cdt.checkpoint.steps import step_of
from nemo_cdt.config import Precision
from nemo_cdt.evaluation.longppl import key_tokens
from nemo_cdt.evaluation.model import read_config
from nemo_cdt.report.plots import STYLE
from nemo_cdt.utils.atomic_write import new_folder

WIDTHS = {Precision.bf16: 2, Precision.fp32: 4}


@dataclass(kw_only=True, slots=True)
class Prepared:
    """A model's folder and what is to be asked of it, checked for room but not loaded."""

    folder: Path
    config: PretrainedConfig
    samples: list[Sample]
    tokenizer: PreTrainedTokenizerFast | None
    device: torch.device

    def load(self, precision: Precision) -> AnalyzedModel:
        return load(self.folder, self.config, precision, self.device)


def analyze(measure: Measure, settings: Settings, arguments: Sequence[str]) -> Path:
    """Runs a measure and returns the folder: ``result.json``, a PNG of each picture and ``report.html``.

    Raises:
        ValueError: where model or data cannot be analysed.
    """
    assert settings.output is not None
    with new_folder(Path(settings.output)) as folder, matplotlib.rc_context(STYLE):
        result, facts = _run(measure, settings)
        page.write(folder, measure, settings, result, facts, arguments)
    return Path(settings.output)


def _run(measure: Measure, settings: Settings) -> tuple[Result, page.Facts]:
    if measure is Measure.significance:
        return _significance(settings)
    assert settings.model is not None
    if settings.data.name is Source.jsonl:
        check_rows(Path(settings.data.path or ""))
    if measure is Measure.checkpoints:
        return _across_checkpoints(Path(settings.model), settings)
    with opened(Path(settings.model)) as folder:
        prepared = prepare(folder, settings, measure)
        if measure is Measure.denoise:
            found = denoising(prepared.load, prepared.samples, settings.denoise, settings.top_k)
            result = report(found, settings.denoise)
            _tell_surprise(result, prepared, [one.correct for one in found if one.stage == BEFORE], settings)
            dtypes = settings.denoise.dtypes
            return result, page.facts(settings, prepared.config, prepared.device, prepared.samples, None, dtypes)
        if measure is Measure.attention_map:
            return _attention_map(prepared, settings)
        analyzed = prepared.load(settings.dtype)
        observations = observe_all(analyzed, prepared.samples, settings.top_k)
        result = _measured(measure, analyzed, observations, settings)
        del analyzed
        _tell_surprise(result, prepared, [one.correct for one in observations], settings)
    return result, page.facts(settings, prepared.config, prepared.device, prepared.samples, observations)


def prepare(folder: Path, settings: Settings, measure: Measure) -> Prepared:
    """Raises ValueError for samples that cannot be used, or need more memory than there is."""
    device = choose_device(settings.device)
    config = read_config(folder)
    tokenizer = read_tokenizer(folder, settings.tokenizer)
    samples = load_samples(settings.data, tokenizer, config.vocab_size, settings.seed)
    precisions = settings.denoise.dtypes if measure is Measure.denoise else [settings.dtype]
    copies = 1
    if measure is Measure.denoise:  # gradients, and Adam's moments; the copy of the weights is the host's
        copies = {Optimizer.none: 1, Optimizer.sgd: 2, Optimizer.adamw: 4}[settings.denoise.optimizer]
    longest = max(samples, key=len)
    memory.require_room(
        config,
        where=longest.where,
        tokens=len(longest),
        rows=len(longest.rows),
        width=max(WIDTHS[precision] for precision in precisions),
        copies=copies,
        free=memory.free_bytes(device),
    )
    return Prepared(folder=folder, config=config, samples=samples, tokenizer=tokenizer, device=device)


def _tell_surprise(result: Result, prepared: Prepared, correct: list[bool], settings: Settings) -> None:
    """Says on the console and on the page where no answer is right. The model is loaded again, to write one."""
    if any(correct):
        return
    notice = format_notice(prepared.load(settings.dtype), prepared.samples, prepared.tokenizer)
    result.notices.append(notice)
    print(f"note: {notice}", file=sys.stderr, flush=True)


def _measured(measure: Measure, analyzed: AnalyzedModel, found: list[Observation], settings: Settings) -> Result:
    simple: dict[Measure, Callable[[], Result]] = {
        Measure.ig: lambda: scores.ig(found),
        Measure.fr: lambda: scores.fr(found, settings.top_k),
        Measure.gradient: lambda: scores.gradient(found),
        Measure.longppl: lambda: longppl(analyzed, found, settings.longppl),
        Measure.detection: lambda: _detection(analyzed, found, settings),
    }
    return simple[measure]()


def _detection(analyzed: AnalyzedModel, found: list[Observation], settings: Settings) -> Result:
    analyzed.require_plain_head()
    keys = [
        key_tokens(analyzed.log_probabilities, one.sample.input_ids, settings.longppl, analyzed.device)
        for one in shown(found, "long and short context", len(found))
    ]
    return detection(found, keys, settings.top_k)


def _attention_map(before: Prepared, settings: Settings) -> tuple[Result, page.Facts]:
    """One model is in memory at a time."""
    assert settings.compare is not None
    layer, chunks = choose_layer(settings.attention_map, before.config.num_hidden_layers), settings.attention_map.chunks
    with opened(Path(settings.compare)) as folder:
        config = read_config(folder)
        if any(getattr(config, key) != getattr(before.config, key) for key in ("num_hidden_layers", "vocab_size")):
            raise ValueError(
                f"compare={settings.compare} has other layers or another vocabulary than model={settings.model}"
            )
        first = maps(before.load(settings.dtype), before.samples, layer, chunks)
        second = maps(load(folder, config, settings.dtype, before.device), before.samples, layer, chunks)
    facts = page.facts(settings, before.config, before.device, before.samples, None)
    result = attention_map(first, second, layer)
    _tell_surprise(result, before, [one.correct for one in first.looks], settings)
    return result, facts


def _across_checkpoints(run: Path, settings: Settings) -> tuple[Result, page.Facts]:
    found = []
    every = checkpoints(run)
    for checkpoint in every:
        with opened(checkpoint) as folder:
            prepared = prepare(folder, settings, Measure.checkpoints)
            observations = observe_all(prepared.load(settings.dtype), prepared.samples, settings.top_k)
            found.append(moments(step_of(checkpoint), observations, settings.top_k))
            if checkpoint == every[-1]:
                result = across_checkpoints(found)
                _tell_surprise(result, prepared, [one.correct for one in observations], settings)
    return result, page.facts(settings, prepared.config, prepared.device, prepared.samples, observations)


def _significance(settings: Settings) -> tuple[Result, page.Facts]:
    assert settings.predictions is not None
    assert settings.baseline is not None
    result = significance(Path(settings.predictions), Path(settings.baseline), settings.resamples, settings.seed)
    return result, page.Facts(values={"Predictions": settings.predictions, "Baseline": settings.baseline})
