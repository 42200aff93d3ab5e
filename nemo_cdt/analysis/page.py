"""A result as files: ``result.json``, a PNG of each picture, and one HTML page that needs nothing else."""

import base64
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import PretrainedConfig

from nemo_cdt import report
from nemo_cdt.analysis.estimate import estimate
from nemo_cdt.analysis.measures import Measure
from nemo_cdt.analysis.memory import parameters
from nemo_cdt.analysis.observe import Observation
from nemo_cdt.analysis.result import Drawing, Result, Table
from nemo_cdt.analysis.samples import CONTEXT, Sample
from nemo_cdt.analysis.settings import Settings, Source
from nemo_cdt.config import Precision
from nemo_cdt.report.heatmap import MEANINGS, TYPE_NAMES
from nemo_cdt.utils.atomic_write import atomic_write
from nemo_cdt.utils.reading import valid


@dataclass(kw_only=True, slots=True)
class Facts:
    """What was analysed: named values, what the samples are made of, and each sample's loss and answer."""

    values: dict[str, str]
    tables: list[Table] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)


def facts(
    settings: Settings,
    config: PretrainedConfig,
    device: torch.device,
    samples: Sequence[Sample],
    observations: Sequence[Observation] | None,
    precisions: Sequence[Precision] | None = None,
) -> Facts:
    """precisions: those of ``settings.dtype`` where None."""
    tokens = sorted(len(sample) for sample in samples)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    found = {
        "Model": f"{settings.model}: {config.architectures[0] if config.architectures else config.model_type}, "
        f"{parameters(config):,} parameters, {config.num_hidden_layers} layers, {config.num_attention_heads} heads",
        "Device": f"{where}, {' and '.join(precisions or [settings.dtype])}",
        "Data": f"{settings.data.name}, seed {settings.seed}"
        if settings.data.name is Source.multihop
        else str(settings.data.path),
        "Samples": f"{len(samples)}, of {tokens[0]:,} to {tokens[-1]:,} tokens",
    }
    if observations is not None:
        right = sum(one.correct for one in observations)
        found["Answers"] = (
            f"{right} of {len(observations)} correct: greedy decoding writes the labelled answer, token by token; "
            f"its loss is {estimate([one.loss for one in observations])} nats a token"
        )
    found["Versions"] = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    each = [{"sample": sample.where, "tokens": len(sample)} for sample in samples]
    if observations is not None:
        each = [row | {"loss": one.loss, "correct": one.correct} for row, one in zip(each, observations, strict=True)]
    return Facts(values=found, tables=[_composition(samples)], samples=each)


def write(
    folder: Path, measure: Measure, settings: Settings, result: Result, facts: Facts, arguments: Sequence[str]
) -> None:
    """Into ``folder``, which exists. The page's command writes beside it."""
    command = ["nemo-cdt", "analyze", measure]
    again = [f"{a.rstrip('/')}-again" if a.startswith("output=") else a for a in arguments]
    record = {
        "measure": measure,
        "command": shlex.join([*command, *arguments]),
        "facts": facts.values,
        "settings": asdict(settings),
        "samples": facts.samples,
        "numbers": result.numbers,
    }
    text = json.dumps(record, indent=1, allow_nan=False)
    atomic_write(folder / "result.json", text + "\n")
    write_page(folder, result, facts, shlex.join([*command, *again]))


def write_page(folder: Path, result: Result, facts: Facts, command: str) -> None:
    """The pictures, and ``report.html``."""
    pictures = [(drawing, _png(drawing, folder / f"{drawing.name}.png")) for drawing in result.drawings]
    loader = jinja2.FileSystemLoader([Path(__file__).parent, Path(report.__file__).parent])
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.get_template("analysis.html.j2")
    page = template.render(result=result, facts=facts, pictures=pictures, command=command)
    atomic_write(folder / "report.html", valid(page))


def _png(drawing: Drawing, path: Path) -> str:
    """Writes the file, and returns it as a data: URI."""
    figure: Figure = drawing.figure
    figure.suptitle(drawing.title, fontsize=11)
    for axes in figure.axes:
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8)
    figure.savefig(path, dpi=130)
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _composition(samples: Sequence[Sample]) -> Table:
    rows = []
    for type in CONTEXT:
        counts = [int((sample.types == type).sum()) for sample in samples]
        share = [n / max(1, int(s.of(*CONTEXT).sum())) for n, s in zip(counts, samples, strict=True)]
        rows.append([TYPE_NAMES[type], MEANINGS[type], f"{np.mean(counts):,.1f}", f"{100 * np.mean(share):.3g} %"])
    return Table(
        title="Token types and base rates",
        caption="What a context is made of. The shares are what a blind choice of tokens would find.",
        header=["token type", "what it is", "tokens of a sample", "share of the context"],
        rows=rows,
    )
