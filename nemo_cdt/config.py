"""The schema of ``conf/``: what a run is. Knows nothing of torch, so that a mistake costs no import of NeMo.

Hydra checks names and types against these dataclasses; :func:`validate` checks what no type can say.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Optional

# Hydra reads `Optional[int]` but not `int | None` in a structured config, hence the older spelling here.


class ObjectiveName(StrEnum):
    cdt = "cdt"
    ce = "ce"


class Normalization(StrEnum):
    """How a noise token's embedding gradient becomes its shift; see :mod:`nemo_cdt.denoise`."""

    gradient = "gradient"
    epsilon = "epsilon"
    relative = "relative"


class ThresholdScope(StrEnum):
    document = "document"
    row = "row"


class DataName(StrEnum):
    multihop = "multihop"
    jsonl = "jsonl"


class Precision(StrEnum):
    bf16 = "bf16"
    fp32 = "fp32"


class Accelerator(StrEnum):
    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class Schedule(StrEnum):
    cosine = "cosine"
    constant = "constant"


@dataclass(kw_only=True, slots=True)
class RopeScaling:
    """Llama 3.1's RoPE scaling; the names are those of a Hugging Face ``config.json``."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(kw_only=True, slots=True)
class Model:
    name: str = "tiny"
    num_layers: int = 4
    hidden_size: int = 128
    ffn_hidden_size: int = 384
    num_attention_heads: int = 4
    num_query_groups: int = 2
    vocab_size: Optional[int] = None  # None: the tokenizer's, padded as Megatron pads it
    max_positions: int = 131072
    rotary_base: float = 500000.0
    rope_scaling: Optional[RopeScaling] = field(default_factory=RopeScaling)
    norm_epsilon: float = 1e-5
    init_std: float = 0.02
    tied_embeddings: bool = False
    fp32_residual: bool = False  # keep the residual stream, and so the denoised embedding, in fp32
    tokenizer: str = "byte"  # "byte", or a Hugging Face tokenizer folder


@dataclass(kw_only=True, slots=True)
class Objective:
    name: ObjectiveName = ObjectiveName.cdt
    beta: float = 5.0
    lr: Any = "scheduled"  # "scheduled": the optimizer's current learning rate; or a number
    normalization: Normalization = Normalization.gradient
    rho: float = 0.01
    epsilon: float = 1e-3
    threshold_scope: ThresholdScope = ThresholdScope.document


@dataclass(kw_only=True, slots=True)
class Data:
    name: DataName = DataName.multihop
    path: Optional[str] = None  # jsonl: the rows. multihop: haystack text, a file or a folder of text files
    validation_path: Optional[str] = None  # jsonl: None takes `validation_samples` rows of `path`
    seq_length: int = 1024  # positions fed; a document has one token more
    validation_samples: int = 64
    shuffle: bool = True
    num_workers: int = 0
    truncate: bool = False  # jsonl: cut what is longer than seq_length + 1 instead of refusing it
    hops: list[int] = field(default_factory=lambda: [3, 4])  # multihop: which of 3 and 4 to draw from
    emojis: int = 3  # multihop: low-frequency tokens in each sample


@dataclass(kw_only=True, slots=True)
class Parallel:
    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: Optional[int] = None
    context: int = 1
    sequence: bool = False


@dataclass(kw_only=True, slots=True)
class Trainer:
    max_steps: int = 100
    global_batch_size: int = 8
    micro_batch_size: int = 1
    precision: Precision = Precision.bf16
    devices: int = 1
    num_nodes: int = 1
    accelerator: Accelerator = Accelerator.auto
    seed: int = 42
    val_interval: int = 0  # steps between validations; 0: never
    checkpoint_interval: int = 0  # steps between checkpoints; 0: only at the end


@dataclass(kw_only=True, slots=True)
class Optim:
    lr: float = 1e-5
    min_lr: float = 1e-6
    schedule: Schedule = Schedule.cosine
    warmup_steps: int = 0
    weight_decay: float = 0.1
    clip_grad: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95


@dataclass(kw_only=True, slots=True)
class Init:
    hf: Optional[str] = None
    nemo: Optional[str] = None


@dataclass(kw_only=True, slots=True)
class Export:
    hf: Optional[str] = None


@dataclass(kw_only=True, slots=True)
class Launcher:
    name: str = "local"


@dataclass(kw_only=True, slots=True)
class Config:
    name: str = "demo"
    output: str = "runs/demo"
    resume: bool = False
    compare_to: Optional[ObjectiveName] = None  # also train this objective, same seed and data, in OUTPUT/baseline
    report: bool = True
    model: Model = field(default_factory=Model)
    objective: Objective = field(default_factory=Objective)
    data: Data = field(default_factory=Data)
    parallel: Parallel = field(default_factory=Parallel)
    trainer: Trainer = field(default_factory=Trainer)
    optim: Optim = field(default_factory=Optim)
    launcher: Launcher = field(default_factory=Launcher)
    init: Init = field(default_factory=Init)
    export: Export = field(default_factory=Export)
