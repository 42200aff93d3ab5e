"""The schema of ``conf/``: what a run is. Knows nothing of torch, so that a mistake costs no import of NeMo.

Hydra checks names and types against these dataclasses; :mod:`nemo_cdt.validation` checks what no type can say.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Optional

from nemo_cdt.config.launcher import Launcher
from nemo_cdt.config.loggers import Loggers
from nemo_cdt.config.objective import default_objective
from nemo_cdt.utils.enums import StrEnum

PROFILED_STEP = 4
"""By then memory is allocated and kernels are chosen."""

# Hydra reads `Optional[int]` but not `int | None` in a structured config, hence the older spelling here.


class DataName(StrEnum):
    multihop = "multihop"
    jsonl = "jsonl"
    preferences = "preferences"
    prepared = "prepared"
    pretrain = "pretrain"

    @property
    def is_prepared(self) -> bool:
        """Whether ``data.path`` is a folder of `nemo-cdt prepare`."""
        return self in (DataName.prepared, DataName.pretrain)


class Precision(StrEnum):
    bf16 = "bf16"
    fp32 = "fp32"


class Accelerator(StrEnum):
    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class ContextComm(StrEnum):
    """How context-parallel ranks exchange keys and values, as Transformer Engine names it."""

    p2p = "p2p"
    all_gather = "all_gather"
    a2a = "a2a"


class Recompute(StrEnum):
    """Which activations are computed again in the backward pass: Megatron's granularities; selective is the MLPs'."""

    none = "none"
    selective = "selective"
    full = "full"


class FP8(StrEnum):
    """Which passes compute their linear layers in FP8: an approximation of what is the same otherwise."""

    none = "none"
    detection = "detection"
    both = "both"


class Schedule(StrEnum):
    cosine = "cosine"
    constant = "constant"


class LoraTarget(StrEnum):
    """The linear layers of Megatron's GPT, as NeMo's LoRA names them."""

    linear_qkv = "linear_qkv"
    linear_proj = "linear_proj"
    linear_fc1 = "linear_fc1"
    linear_fc2 = "linear_fc2"


class Family(StrEnum):
    """What Hugging Face calls a model, its ``model_type``: an export has that family's ``config.json``."""

    llama = "llama"
    mistral = "mistral"
    qwen2 = "qwen2"
    qwen3 = "qwen3"


class RopeType(StrEnum):
    none = "none"
    llama3 = "llama3"
    yarn = "yarn"


@dataclass(kw_only=True, slots=True)
class RopeScaling:
    """How RoPE reaches beyond its training length; the names are those of a Hugging Face ``config.json``.

    Not null where there is none: Hydra cannot set a key of what is null.
    """

    rope_type: RopeType = RopeType.llama3
    factor: float = 8.0
    original_max_position_embeddings: int = 8192
    low_freq_factor: float = 1.0  # of llama3, as the next
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0  # of yarn, as the next two
    beta_slow: float = 1.0
    attention_factor: Optional[float] = None  # scales queries and keys; None: 0.1 ln(factor) + 1

    def __post_init__(self) -> None:
        self.rope_type = RopeType(self.rope_type)  # a plain word in a checkpoint


@dataclass(kw_only=True, slots=True)
class Model:
    name: str = "tiny"
    family: Family = Family.llama
    num_layers: int = 4
    hidden_size: int = 128
    ffn_hidden_size: int = 384
    num_attention_heads: int = 4
    num_query_groups: int = 2
    head_dim: Optional[int] = None  # None: hidden_size / num_attention_heads
    qkv_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each head's query and key, before RoPE
    sliding_window: Optional[int] = None  # positions that one attends to, itself included; None: all before it
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0  # of the embedding and of what each layer adds to the residual stream
    vocab_size: Optional[int] = None  # None: the tokenizer's, padded as Megatron pads it
    max_positions: int = 131072
    rotary_base: float = 500000.0
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    norm_epsilon: float = 1e-5
    init_std: float = 0.02
    tied_embeddings: bool = False
    fp32_residual: bool = False  # keep the residual stream, and so the denoised embedding, in fp32
    tokenizer: Optional[str] = None  # a Hugging Face folder, or "byte"; None: that of init, without init byte

    @property
    def rope(self) -> RopeScaling | None:
        """The scaling, where there is one."""
        return None if self.rope_scaling.rope_type is RopeType.none else self.rope_scaling

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def query_size(self) -> int:
        """Of all heads' queries together, and of attention's output."""
        return self.num_attention_heads * self.head_size

    @property
    def key_size(self) -> int:
        """Of all groups' keys together, and of their values."""
        return self.num_query_groups * self.head_size


@dataclass(kw_only=True, slots=True)
class Questions:
    """What ``multihop`` generates; training, ``analyze`` and ``inspect`` share these keys."""

    hops: list[int] = field(default_factory=lambda: [3, 4])  # multihop: some of 1 to 4, facts that an answer needs
    needles: float = 0.0  # multihop: the share of samples that ask for one fact instead, as RULER's needles do
    begun: bool = False  # multihop: begin the answer's sentence, as a model needs that was not trained on bare answers
    chat: bool = False  # multihop: as a chat, by the tokenizer's template
    emojis: int = 3  # multihop: low-frequency tokens in each sample

    def questions(self) -> dict[str, Any]:
        """As :class:`nemo_cdt.data.multihop.MultihopDocuments` takes them."""
        return {key.name: getattr(self, key.name) for key in fields(Questions)}

    def mistakes(self, *, asked: bool, prefix: str = "data.") -> Iterator[str]:
        """What is wrong with them, a line each. ``asked``: whether the data is ``multihop``, which they are for."""
        default = Questions().questions()
        idle = [prefix + key for key, value in self.questions().items() if value != default[key]]
        if idle and not asked:
            yield f"{', '.join(idle)}: only data=multihop generates questions; leave out what other data does not use"
        if not self.hops or set(self.hops) - {1, 2, 3, 4}:
            yield f"{prefix}hops={self.hops}: set it to some of 1 to 4, such as [3,4]"
        if not 0 <= self.needles <= 1:
            yield f"{prefix}needles={self.needles}: it is a share, so set it to 0 to 1"
        if self.emojis < 0:
            yield f"{prefix}emojis={self.emojis}: set it to 0 or more"


@dataclass(kw_only=True, slots=True)
class Data(Questions):
    name: DataName = DataName.multihop
    # jsonl, preferences: the rows. prepared, pretrain: a folder of `nemo-cdt prepare`. multihop: haystack text, a file
    # or a folder of text files
    path: Optional[str] = None
    validation_path: Optional[str] = None  # of rows: None takes `validation_samples` rows of `path`
    seq_length: int = 1024  # positions fed; a document has one token more
    validation_samples: int = 64
    shuffle: bool = True
    num_workers: int = 0
    document_length: Optional[int] = None  # positions fed of one document at most; None: seq_length. Shorter to pack
    pack: bool = False  # fill each row with whole documents; attention, positions and thresholds stay within each
    truncate: bool = False  # jsonl: cut what is longer than seq_length + 1 instead of refusing it


@dataclass(kw_only=True, slots=True)
class Parallel:
    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: Optional[int] = None
    context: int = 1
    context_comm: ContextComm = ContextComm.p2p
    sequence: bool = False
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False  # needs overlap_grad_reduce, as in Megatron

    @property
    def model_size(self) -> int:
        """Ranks that together hold one copy of the model and one sequence."""
        return self.tensor * self.pipeline * self.context


@dataclass(kw_only=True, slots=True)
class Trainer:
    max_steps: int = 100
    global_batch_size: int = 8
    micro_batch_size: int = 1
    precision: Precision = Precision.bf16
    fp8: FP8 = FP8.none  # which passes' linear layers; approximate, as the masks are then
    devices: int = 1
    num_nodes: int = 1
    recompute: Recompute = Recompute.none
    mlp_chunks: int = 1  # parts of the sequence in which each MLP is computed, one after another; with recompute=full
    offload_activations: int = 0  # layers whose activations wait in the host's memory for their backward
    grad_dtype: Precision = Precision.fp32  # of the gradient buffers, and of their reduction between ranks
    accelerator: Accelerator = Accelerator.auto
    seed: int = 42
    val_interval: int = 0  # steps between validations; 0: never
    checkpoint_interval: int = 0  # steps between checkpoints; 0: only at the end
    verify_checkpoints: bool = True  # compare a checkpoint's files with their checksums before it is loaded
    checkpoints_kept: int = (
        2  # how many of the newest stay, beside the best; 0: all, as `nemo-cdt analyze checkpoints` wants
    )
    profile: bool = False  # trace the PROFILED_STEP-th step, in OUTPUT/profile

    @property
    def world_size(self) -> int:
        return self.devices * self.num_nodes


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
    eps: float = 1e-8
    offload: float = 0.0  # the share of Adam's state and arithmetic that is the host's: 0 to 1


@dataclass(kw_only=True, slots=True)
class Lora:
    """Low-rank adapters that train in place of the weights: W x + alpha / rank * B A x."""

    rank: int = 0  # 0: no adapters, all weights train
    alpha: int = 32
    dropout: float = 0.0  # of an adapter's input, in detection as in training
    targets: list[LoraTarget] = field(default_factory=lambda: list(LoraTarget))


@dataclass(kw_only=True, slots=True)
class Init:
    hf: Optional[str] = None
    nemo: Optional[str] = None


@dataclass(kw_only=True, slots=True)
class KeyTokenRule:
    """Which tokens are LongPPL's key tokens. The defaults are LongPPL's own."""

    context: int = 4096  # tokens of the short context, at least
    window: int = 1024  # tokens judged at a time
    alpha: float = 2.0  # nats by which the long context must help
    beta: float = -2.0  # the least log-probability that a key token has with it
    batch: int = 8  # windows computed together


@dataclass(kw_only=True, slots=True)
class LongPPL(KeyTokenRule):
    """Perplexity of the validation tokens that need their long context (Fang et al., ICLR 2025); a judge says which."""

    evaluator: Optional[str] = None  # the judge, a Hugging Face folder with the run's tokenizer; None: not measured


@dataclass(kw_only=True, slots=True)
class Export:
    hf: Optional[str] = None


@dataclass(kw_only=True, slots=True)
class Study:
    """What the report tells of ``init.hf`` and of what became of it, on the validation's questions of ``multihop``."""

    samples: int = 0  # questions on which attention, gradient and IG are compared before training; 0: no study


@dataclass(kw_only=True, slots=True)
class Config:
    name: str = "run"
    output: str = "runs/run"
    resume: bool = False
    # also train this objective, same seed and data, in OUTPUT/baseline: its name, or {name: ..., KEY: ...}
    compare_to: Any = None
    report: bool = True
    model: Model = field(default_factory=Model)
    # The settings of one of nemo_cdt/objectives. None where Hydra begins: conf/objective/NAME.yaml fills it.
    objective: Any = None
    data: Data = field(default_factory=Data)
    parallel: Parallel = field(default_factory=Parallel)
    trainer: Trainer = field(default_factory=Trainer)
    optim: Optim = field(default_factory=Optim)
    lora: Lora = field(default_factory=Lora)
    logger: Loggers = field(default_factory=Loggers)
    launcher: Launcher = field(default_factory=Launcher)
    longppl: LongPPL = field(default_factory=LongPPL)
    init: Init = field(default_factory=Init)
    export: Export = field(default_factory=Export)
    study: Study = field(default_factory=Study)

    def __post_init__(self) -> None:
        if self.objective is None:
            self.objective = default_objective()

    @property
    def tokenizer(self) -> str:
        """``"byte"``, or the folder of a Hugging Face tokenizer."""
        if self.model.tokenizer is not None:
            return self.model.tokenizer
        own = [self.init.hf and Path(self.init.hf), self.init.nemo and Path(self.init.nemo, "context/tokenizer")]
        return next((str(folder) for folder in own if folder and (folder / "tokenizer_config.json").exists()), "byte")

    @property
    def data_parallel(self) -> int:
        return self.trainer.world_size // self.parallel.model_size

    @property
    def num_microbatches(self) -> int:
        """Micro-batches of one step that each data-parallel rank runs."""
        return self.trainer.global_batch_size // (self.trainer.micro_batch_size * self.data_parallel)


def walk(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a configuration, dotted, with its value; a group comes before its keys."""
    for item in fields(section):
        value = getattr(section, item.name)
        yield prefix + item.name, value
        if is_dataclass(value):
            yield from walk(value, f"{prefix}{item.name}.")
