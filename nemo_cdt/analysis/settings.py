"""What ``nemo-cdt analyze`` was asked. Knows nothing of torch, so that a mistake costs no import of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from nemo_cdt.analysis.measures import Measure
from nemo_cdt.config import Accelerator, KeyTokenRule, Precision
from nemo_cdt.config.compose import compose_settings
from nemo_cdt.utils.enums import StrEnum


class Source(StrEnum):
    multihop = "multihop"
    jsonl = "jsonl"


class NoiseBy(StrEnum):
    """Which tokens manual denoising moves: Eq. 2; section 3.2, by IG below its mean; all that is no fact."""

    gradient = "gradient"
    ig = "ig"
    oracle = "oracle"


class Optimizer(StrEnum):
    none = "none"
    sgd = "sgd"
    adamw = "adamw"


@dataclass(kw_only=True, slots=True)
class Samples:
    name: Source = Source.multihop  # generated, or read from data.path; data=NAME is short for it
    path: Optional[str] = None  # jsonl: rows as above. multihop: haystack text, a file or a folder of text files
    samples: int = 16  # how many at most
    seq_length: int = 1024  # multihop: tokens of a sample
    hops: list[int] = field(default_factory=lambda: [3, 4])  # multihop: which of 3 and 4 to draw from
    emojis: int = 3  # multihop: low-frequency tokens in each sample


@dataclass(kw_only=True, slots=True)
class Denoise:
    noise: NoiseBy = NoiseBy.gradient  # which tokens move: by gradient or IG below the mean, or all but the facts
    strengths: list[float] = field(default_factory=lambda: [1e-6, 1e-5, 5e-5, 1e-4, 1e-3, 1e-2, 1e-1])  # lr * beta
    rhos: list[float] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2, 1e-1, 1.0])  # of the relative normalization
    dtypes: list[Precision] = field(default_factory=lambda: list(Precision))  # compared, in place of dtype
    optimizer: Optimizer = Optimizer.adamw  # one step of it on the denoised input; none: no training
    lr: float = 1e-5  # of that step


@dataclass(kw_only=True, slots=True)
class AttentionMap:
    layer: Optional[int] = None  # from 0; null: three quarters up, the paper's 24th of 32
    chunks: int = 46  # parts of a sequence, of equal length


@dataclass(kw_only=True, slots=True)
class Settings:
    model: Optional[str] = None  # a Hugging Face folder, a run of ours, or one of its checkpoints
    compare: Optional[str] = None  # attention_map: the model after training
    predictions: Optional[str] = None  # significance: JSON lines of one run
    baseline: Optional[str] = None  # significance: and of the other
    output: Optional[str] = None  # the folder to write, which does not exist yet
    tokenizer: Optional[str] = None  # a Hugging Face folder, or "byte"; null: the model's own
    dtype: Precision = Precision.fp32  # of weights and activations
    device: Accelerator = Accelerator.auto  # auto: a GPU where there is one
    seed: int = 42  # of what is generated, and of resamples
    top_k: int = 30  # tokens that a head's row retrieves (fr), and that a method detects (detection)
    resamples: int = 10000  # significance: of its bootstrap
    data: Samples = field(default_factory=Samples)
    longppl: KeyTokenRule = field(default_factory=KeyTokenRule)
    denoise: Denoise = field(default_factory=Denoise)
    attention_map: AttentionMap = field(default_factory=AttentionMap)


def read(measure: Measure, arguments: Sequence[str]) -> Settings:
    """Overrides in Hydra's grammar; ``data=NAME`` is short for ``data.name=NAME``.

    Raises:
        ValueError: for what is no setting, or cannot be, in one line.
    """
    overrides = [f"data.name={a[5:]}" if a.startswith("data=") else a for a in arguments]
    settings = compose_settings(Settings, overrides)
    for mistake in _mistakes(measure, settings):
        raise ValueError(mistake)
    return settings


def _mistakes(measure: Measure, settings: Settings) -> Iterator[str]:
    if settings.output is None:
        yield f"set output=DIR: the folder that analyze {measure} writes, which does not exist yet"
    elif (folder := Path(settings.output)).exists() and not (folder.is_dir() and not any(folder.iterdir())):
        yield f"output={folder} already exists and is not empty; name a new folder"
    needed = {
        Measure.significance: ["predictions", "baseline"],
        Measure.attention_map: ["model", "compare"],
    }.get(measure, ["model"])
    for key in needed:
        path = getattr(settings, key)
        if path is None:
            yield f"analyze {measure} needs {' and '.join(f'{key}=' for key in needed)}: set {key}=PATH"
        elif not Path(path).exists():
            yield f"{key}={path}: no such {'file' if measure is Measure.significance else 'folder'}"
    yield from _numbers(settings)


def _numbers(settings: Settings) -> Iterator[str]:
    data, longppl, denoise = settings.data, settings.longppl, settings.denoise
    at_least = {
        "top_k": (settings.top_k, 1),
        "resamples": (settings.resamples, 1),
        "data.samples": (data.samples, 1),
        "data.seq_length": (data.seq_length, 1),
        "data.emojis": (data.emojis, 0),
        "longppl.context": (longppl.context, 1),
        "longppl.window": (longppl.window, 1),
        "longppl.batch": (longppl.batch, 1),
        "attention_map.chunks": (settings.attention_map.chunks, 1),
    }
    for key, (value, least) in at_least.items():
        if value < least:
            yield f"{key}={value} must be at least {least}"
    if not data.hops or set(data.hops) - {3, 4}:
        yield f"data.hops={data.hops} must be some of 3 and 4"
    if data.name is Source.jsonl and data.path is None:
        yield "data=jsonl needs data.path=FILE: the samples, with their token types"
    if not denoise.dtypes or not (denoise.strengths or denoise.rhos):
        yield "denoise needs a denoise.dtypes, and one of denoise.strengths and denoise.rhos"
    for key, values in (("strengths", denoise.strengths), ("rhos", denoise.rhos), ("lr", [denoise.lr])):
        if any(not value > 0 for value in values):
            yield f"denoise.{key}={getattr(denoise, key)} must be positive"
