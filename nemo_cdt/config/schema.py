"""The schema of ``conf/``: what a run is. Knows nothing of torch, so that a mistake costs no import of NeMo.

Hydra checks names and types against these dataclasses; :mod:`nemo_cdt.validation` checks what no type can say.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Optional

from nemo_cdt.config.launcher import Launcher
from nemo_cdt.config.loggers import Loggers
from nemo_cdt.config.objective import default_objective
from nemo_cdt.utils.enums import StrEnum

FP8_MULTIPLE = 16
"""Of the positions and of the widths of Transformer Engine's products in FP8."""
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


class Framework(StrEnum):
    """What drives Megatron."""

    auto = "auto"
    nemo = "nemo"
    bridge = "bridge"


class Packing(StrEnum):
    """Which documents share a row, and which rank trains on it."""

    balanced = "balanced"
    sequential = "sequential"


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


class Resharding(StrEnum):
    """Which of Megatron's formats keeps the optimizer's state, and so what a resumed run may change of its layout."""

    dp = "dp"
    full = "full"


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
    """How RoPE is scaled; with none it is not."""
    factor: float = 8.0
    """How many times longer the context becomes."""
    original_max_position_embeddings: int = 8192
    """The positions that the model was trained for before it was scaled."""
    low_freq_factor: float = 1.0
    """With rope_type=llama3: wavelengths above original_max_position_embeddings over this number are scaled in full."""
    high_freq_factor: float = 4.0
    """With rope_type=llama3: wavelengths below original_max_position_embeddings over this number are not scaled."""
    beta_fast: float = 32.0
    """With rope_type=yarn: dimensions that rotate more often than this within the original length are not scaled."""
    beta_slow: float = 1.0
    """With rope_type=yarn: dimensions that rotate less often than this within the original length are fully scaled."""
    attention_factor: Optional[float] = None
    """With rope_type=yarn: the number by which queries and keys are scaled; null takes 0.1 ln(factor) + 1."""

    def __post_init__(self) -> None:
        self.rope_type = RopeType(self.rope_type)  # a plain word in a checkpoint


@dataclass(kw_only=True, slots=True)
class Model:
    """The model's sizes and architecture. Where init is set they are read from its folder."""

    name: str = "tiny"
    """The name of the model, for logs and reports."""
    family: Family = Family.llama
    """The architecture, by Hugging Face's model_type; an export has the config.json of this family."""
    num_layers: int = 4
    """The number of transformer layers."""
    hidden_size: int = 128
    """The width of the residual stream and of the embedding."""
    ffn_hidden_size: int = 384
    """The inner width of each MLP."""
    num_attention_heads: int = 4
    """The number of query heads of a layer."""
    num_query_groups: int = 2
    """The number of key and value heads of a layer."""
    head_dim: Optional[int] = None
    """The size of a head; null takes hidden_size / num_attention_heads."""
    qkv_bias: bool = False
    """Whether the projections of query, key and value have a bias, as in Qwen2."""
    qk_norm: bool = False
    """Whether an RMSNorm is applied to each head's query and key before RoPE, as in Qwen3."""
    sliding_window: Optional[int] = None
    """The number of positions that a token attends to, itself included; null attends to all before it."""
    attention_dropout: float = 0.0
    """The dropout of attention weights."""
    hidden_dropout: float = 0.0
    """The dropout of the embedding and of what each layer adds to the residual stream."""
    vocab_size: Optional[int] = None
    """The number of tokens in the vocabulary; null takes the tokenizer's, padded as Megatron pads it."""
    max_positions: int = 131072
    """The longest sequence that the model is made for; it must hold data.seq_length, and an export says it."""
    rotary_base: float = 500000.0
    """The base of RoPE; a larger one extends the context."""
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    norm_epsilon: float = 1e-5
    """The epsilon of the RMSNorms."""
    init_std: float = 0.02
    """The standard deviation of random weights."""
    tied_embeddings: bool = False
    """Whether the head shares its weights with the embedding."""
    fp32_residual: bool = False
    """Whether the residual stream, and with it the denoised embedding, is fp32, which keeps small shifts."""
    tokenizer: Optional[str] = None
    """A Hugging Face folder with a tokenizer, or byte; null takes the tokenizer of init, and byte without init."""

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

    hops: list[int] = field(default_factory=lambda: [3, 4])
    """With data=multihop: the numbers of facts, from 1 to 4, that an answer may need; one is drawn for each sample."""
    needles: float = 0.0
    """With data=multihop: the share of samples that ask for one fact instead, as RULER's needles do."""
    begun: bool = False
    """With data=multihop: begin the answer's sentence, for a model that was not trained on bare answers."""
    chat: bool = False
    """With data=multihop: write each sample as a chat, by the tokenizer's template."""
    emojis: int = 3
    """With data=multihop: the number of low-frequency tokens (emojis) in each sample."""

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
    """Where rows come from, and how long they are."""

    name: DataName = DataName.multihop
    """The kind of data; set it as data=NAME."""
    path: Optional[str] = None
    """The file of rows (jsonl, preferences), the folder of `nemo-cdt prepare` (prepared, pretrain), or text to hide
    the facts in (multihop: a file or a folder of text files)."""
    validation_path: Optional[str] = None
    """A file of rows to validate on; null holds out validation_samples rows of path."""
    seq_length: int = 1024
    """The positions that are fed to the model in a row; a document has one token more."""
    validation_samples: int = 64
    """The number of rows to validate on."""
    shuffle: bool = True
    """Whether rows come in an order drawn from trainer.seed."""
    num_workers: int = 0
    """The number of processes that read data beside each rank; 0 reads in the rank itself."""
    document_length: Optional[int] = None
    """The most positions of one document; null takes seq_length. Set it lower than seq_length to pack."""
    pack: bool = False
    """Fill each row with whole documents; attention, positions and thresholds stay within each document."""
    packing: Packing = Packing.balanced
    """With pack=true, how documents come to rows. balanced deals those of a step so that each GPU has as much to
    compute, and ends a row with its last document; a step has at most global_batch_size times seq_length tokens.
    sequential fills one row of seq_length after the other, for as long as the next document fits."""
    truncate: bool = False
    """With data=jsonl: cut a document that is longer than seq_length + 1 tokens instead of refusing it."""


@dataclass(kw_only=True, slots=True)
class Parallel:
    """How one model and one sequence are split between GPUs; the rest of the GPUs are data-parallel copies."""

    tensor: int = 1
    """The number of GPUs that share each layer's weights (tensor parallelism)."""
    pipeline: int = 1
    """The number of pipeline stages."""
    virtual_pipeline: Optional[int] = None
    """The number of chunks of layers on each pipeline stage (interleaved pipeline); null is not interleaved."""
    context: int = 1
    """The number of GPUs that share each sequence (context parallelism)."""
    context_comm: ContextComm = ContextComm.p2p
    """How context-parallel ranks exchange keys and values, as Transformer Engine names it."""
    sequence: bool = False
    """Whether tensor-parallel ranks also split activations along the sequence (sequence parallelism)."""
    overlap_grad_reduce: bool = False
    """Whether data-parallel ranks reduce gradients while the backward pass still runs."""
    overlap_param_gather: bool = False
    """Whether data-parallel ranks gather weights while the forward pass runs; it needs overlap_grad_reduce."""

    @property
    def model_size(self) -> int:
        """Ranks that together hold one copy of the model and one sequence."""
        return self.tensor * self.pipeline * self.context


@dataclass(kw_only=True, slots=True)
class Trainer:
    """Steps, batch, precision, devices, memory and checkpoints."""

    max_steps: int = 100
    """The number of optimizer steps."""
    global_batch_size: int = 8
    """The number of rows in a step, over all GPUs."""
    micro_batch_size: int = 1
    """The number of rows that a GPU computes at a time."""
    precision: Precision = Precision.bf16
    """The precision of weights and activations; the optimizer keeps fp32 weights beside bf16 ones."""
    fp8: FP8 = FP8.none
    """Which passes compute their linear layers in FP8: detection or both. Scores and masks are approximate then."""
    devices: int = 1
    """The number of GPUs of a node, or of processes on a CPU."""
    num_nodes: int = 1
    """The number of nodes."""
    recompute: Recompute = Recompute.none
    """Which activations the training pass computes again in its backward to save memory; selective is the MLPs'."""
    mlp_chunks: int = 1
    """The number of parts of the sequence in which each MLP is computed, one after another; it needs recompute=full."""
    offload_activations: int = 0
    """The number of layers whose activations wait in the host's memory for their backward."""
    grad_dtype: Precision = Precision.fp32
    """The precision of gradient buffers and of their reduction between ranks."""
    accelerator: Accelerator = Accelerator.auto
    """The kind of device; auto takes GPUs where there are any."""
    seed: int = 42
    """The seed of weights, data order and dropout."""
    val_interval: int = 0
    """The number of steps between validations; 0 never validates."""
    checkpoint_interval: int = 0
    """The number of steps between checkpoints; 0 saves at the end alone."""
    verify_checkpoints: bool = True
    """Whether a checkpoint's files are compared with their checksums before it is loaded."""
    checkpoints_kept: int = 2
    """The number of newest checkpoints that are kept beside the best; 0 keeps all, for `analyze checkpoints`."""
    checkpoint_resharding: Resharding = Resharding.dp
    """What may change when a checkpoint is resumed: dp, the sizes of data and context parallelism; full, any layout."""
    async_save: bool = True
    """Whether training goes on while a checkpoint's files are written; the last save always waits for them."""
    profile: bool = False
    """Whether the fourth step of an attempt is traced into OUTPUT/profile."""

    @property
    def world_size(self) -> int:
        return self.devices * self.num_nodes


@dataclass(kw_only=True, slots=True)
class Optim:
    """Adam and its learning rate."""

    lr: float = 1e-5
    """The highest learning rate."""
    min_lr: float = 1e-6
    """The learning rate at which the cosine schedule ends."""
    schedule: Schedule = Schedule.cosine
    """How the learning rate changes after warm-up."""
    warmup_steps: int = 0
    """The number of steps in which the learning rate rises from 0."""
    weight_decay: float = 0.1
    """Adam's decoupled weight decay."""
    clip_grad: float = 1.0
    """The norm at which gradients are clipped."""
    beta1: float = 0.9
    """Adam's decay of the gradient's mean; it has nothing to do with objective.beta."""
    beta2: float = 0.95
    """Adam's decay of the squared gradient's mean."""
    eps: float = 1e-8
    """Adam's epsilon."""
    offload: float = 0.0
    """The share of Adam's state and arithmetic that lies on the host, from 0 to 1."""


@dataclass(kw_only=True, slots=True)
class Lora:
    """Low-rank adapters that train in place of the weights: W x + alpha / rank * B A x."""

    rank: int = 0
    """The rank of the adapters; 0 trains all weights and no adapters."""
    alpha: int = 32
    """The adapters' scale: what they add is multiplied by alpha / rank."""
    dropout: float = 0.0
    """The dropout of an adapter's input, in detection as in training."""
    targets: list[LoraTarget] = field(default_factory=lambda: list(LoraTarget))
    """The linear layers that get adapters."""


@dataclass(kw_only=True, slots=True)
class Init:
    """The weights that training begins with. Without either key they are random."""

    hf: Optional[str] = None
    """A Hugging Face folder; the model and the tokenizer are those of this folder."""
    nemo: Optional[str] = None
    """A NeMo checkpoint, such as one of `nemo-cdt convert` or of another run."""


@dataclass(kw_only=True, slots=True)
class KeyTokenRule:
    """Which tokens are LongPPL's key tokens. The defaults are LongPPL's own."""

    context: int = 4096
    """The least number of tokens in the short context."""
    window: int = 1024
    """The number of tokens that are judged at a time."""
    alpha: float = 2.0
    """The gain in log-probability (nats) that a key token must have from the long context."""
    beta: float = -2.0
    """The least log-probability that a key token must have with the long context; it is not objective.beta."""
    batch: int = 8
    """The number of windows that are computed together."""


@dataclass(kw_only=True, slots=True)
class LongPPL(KeyTokenRule):
    """Perplexity of the validation tokens that need their long context (Fang et al., ICLR 2025); a judge says which."""

    evaluator: Optional[str] = None
    """The model that judges which tokens need the long context: a Hugging Face folder with the run's tokenizer; null
    measures no LongPPL."""


@dataclass(kw_only=True, slots=True)
class Export:
    """What a run leaves beside its own checkpoints."""

    hf: Optional[str] = None
    """The folder for a Hugging Face model when training ends; null exports none."""


@dataclass(kw_only=True, slots=True)
class Study:
    """What the report tells of ``init.hf`` and of what became of it, on the validation's questions of ``multihop``."""

    samples: int = 0
    """The number of questions on which attention, gradient and IG are compared before training; 0 makes no study."""


@dataclass(kw_only=True, slots=True)
class Config:
    """A run: its name and place, and its groups."""

    name: str = "run"
    """The name of the run, from which its output folder is named."""
    output: str = "runs/run"
    """The folder that the run writes: runs/NAME unless it is set."""
    resume: bool = False
    """Whether the run goes on from the last checkpoint in output."""
    framework: Framework = Framework.auto
    """What drives Megatron: nemo is NeMo 2, bridge is Megatron-Bridge; auto takes the one that is installed."""
    compare_to: Any = None
    """An objective that is trained too, with the same seed and data, in OUTPUT/baseline: its name, or
    {name:NAME,KEY:VALUE}; null trains none."""
    report: bool = True
    """Whether report.html is written when training ends."""
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
    def deals(self) -> bool:
        """Whether the documents of a step are dealt to ranks and micro-batches, whose rows then differ in length."""
        return self.data.pack and self.data.packing is Packing.balanced

    @property
    def document_multiple(self) -> int:
        """Packed documents are padded to a multiple of this: context-parallel ranks hold two equal parts of each."""
        return 2 * self.parallel.context if self.parallel.context > 1 else 1

    @property
    def row_multiple(self) -> int:
        """The length of a row is a multiple of this: what splits the sequence, times what FP8's products ask for."""
        tensor = self.parallel.tensor if self.parallel.sequence else 1
        fp8 = FP8_MULTIPLE * self.trainer.mlp_chunks if self.trainer.fp8 is not FP8.none else 1
        return math.lcm(self.document_multiple * tensor, fp8 * self.parallel.context * tensor)

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
