"""What no type can say about a run, checked before anything heavy is imported.

Each check raises ValueError with one line: the values that cannot be together, and what to set instead.
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

from nemo_cdt.config import (
    FP8,
    PROFILED_STEP,
    Config,
    ContextComm,
    Data,
    DataName,
    DetectionRecompute,
    Family,
    LongPPL,
    Lora,
    LoraTarget,
    Model,
    Objective,
    ObjectiveName,
    Parallel,
    Precision,
    Recompute,
    RopeScaling,
    RopeType,
    Trainer,
    walk,
)
from nemo_cdt.launcher import LauncherName, check_launcher
from nemo_cdt.prepared import TRAIN, VALIDATION, fingerprint, read_summary
from nemo_cdt.resumption import earlier_attempt, require_same_run

MAY_BE_ZERO = {
    "objective.beta",
    "objective.margin",
    "objective.sft_weight",
    "data.validation_samples",
    "data.num_workers",
    "data.emojis",
    "longppl.alpha",
    "model.attention_dropout",
    "model.hidden_dropout",
    "lora.rank",
    "lora.dropout",
    "trainer.seed",
    "trainer.val_interval",
    "trainer.checkpoint_interval",
    "trainer.checkpoints_kept",
    "trainer.offload_activations",
    "optim.offload",
    "optim.min_lr",
    "optim.warmup_steps",
    "optim.weight_decay",
    "optim.clip_grad",
    "optim.beta1",
    "optim.beta2",
    "launcher.max_restarts",
    "launcher.requeues",
}
MAY_BE_NEGATIVE = {"longppl.beta"}
HOPS = {3, 4}
FP8_MULTIPLE = 16
"""Of the positions and of the widths of Transformer Engine's products in FP8."""
OF_LONGCE = ("window", "internal", "gamma")
OF_LOGO = ("preference_beta", "margin", "sft_weight")
FAMILIES = {  # what Hugging Face has in each: qkv_bias, qk_norm, and whether a sliding window is possible
    Family.llama: (False, False, False),
    Family.mistral: (False, False, True),
    Family.qwen2: (True, False, True),
    Family.qwen3: (False, True, True),
}
OF_ROPE_TYPE = {  # of model.rope_scaling, what the other type has no use for
    RopeType.llama3: ("low_freq_factor", "high_freq_factor"),
    RopeType.yarn: ("beta_fast", "beta_slow", "attention_factor"),
}


def validate(config: Config, site: str = "launcher") -> None:
    """Raise ValueError for a run that cannot be. Call it once, before OUTPUT is made: OUTPUT must not hold a run.

    A dry run shows a job whose data and weights are not there too: launchers/jobs.py says which. ``site`` is the file
    that has what is missing.
    """
    check_launcher(config.launcher, config.name, config.output, site)
    validate_values(config)
    validate_layout(config)
    if not config.launcher.dryrun:
        require_sources(config)


def require_sources(config: Config) -> None:
    """Raise ValueError where a run lacks what it begins from, or room for what it makes; part of :func:`validate`.

    The files of a run that a launcher starts elsewhere are checked there, by :func:`check_files`.
    """
    _check_lora(config)
    _check_data(config)
    if not config.launcher.elsewhere:
        check_files(config)
        _check_output(config)


def check_files(config: Config) -> None:
    """Raise ValueError for a file of ``data``, ``init`` or ``model`` that is not as it must be."""
    _check_data_files(config)
    _check_sources(config)
    if config.data.name.is_prepared:
        _check_prepared(config)


def sources(config: Config) -> dict[str, str]:
    """The files and folders that :func:`check_files` looks at, by the keys that name them."""
    tokenizer = config.model.tokenizer
    named = {
        "data.path": config.data.path,
        "data.validation_path": config.data.validation_path,
        "init.hf": config.init.hf,
        "init.nemo": config.init.nemo,
        "model.tokenizer": None if tokenizer == "byte" else tokenizer,
        "longppl.evaluator": config.longppl.evaluator,
    }
    return {key: path for key, path in named.items() if path is not None}


def validate_values(config: Config) -> None:
    """Raise ValueError for values that no layout and no data could make right; part of :func:`validate`."""
    _check_signs(config)
    _check_model(config)
    _check_objective(config)
    _check_longppl(config)
    _check_optim(config)


def validate_layout(config: Config) -> None:
    """Raise ValueError where model and batch cannot be split as ``config`` says; part of :func:`validate`."""
    _check_layout(config)
    _check_batch(config)
    _check_profile(config.trainer)
    _check_lengths(config)
    _check_packing(config)
    _check_memory(config)
    _check_fp8(config)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_signs(config: Config) -> None:
    for name, value in walk(config):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            zero = name in MAY_BE_ZERO
            _require(
                math.isfinite(value) and (value > 0 or (zero and value == 0) or name in MAY_BE_NEGATIVE),
                f"{name}={value}: set it to {'0 or more' if zero else 'a number above 0'}",
            )


def _check_model(config: Config) -> None:
    model = config.model
    heads, groups = model.num_attention_heads, model.num_query_groups
    _require(
        model.head_dim is not None or model.hidden_size % (2 * heads) == 0,
        f"model.hidden_size={model.hidden_size} must be a multiple of 2 * model.num_attention_heads={heads}: "
        f"set model.hidden_size={_nearest(model.hidden_size, 2 * heads)}, or model.head_dim",
    )
    _require(
        model.head_dim is None or model.head_dim % 2 == 0,
        f"model.head_dim={model.head_dim} must be even: set model.head_dim={_nearest(model.head_dim or 0, 2)}",
    )
    _require(
        heads % groups == 0,
        f"model.num_query_groups={groups} must divide model.num_attention_heads={heads}: "
        f"set model.num_query_groups to {_divisors(heads)}",
    )
    for name in ("attention_dropout", "hidden_dropout"):
        _require(getattr(model, name) < 1, f"model.{name}={getattr(model, name)}: set it below 1")
    _check_family(model)
    _check_rope(model.rope_scaling)


def _check_family(model: Model) -> None:
    bias, norm, window = FAMILIES[model.family]
    for key, has in (("qkv_bias", bias), ("qk_norm", norm)):
        _require(
            getattr(model, key) == has,
            f"model.{key}={_yaml(not has)} with model.family={model.family}, which at Hugging Face has "
            f"{'it' if has else 'none'}: set model.{key}={_yaml(has)}, or another model.family",
        )
    _require(
        window or model.sliding_window is None,
        f"model.sliding_window={model.sliding_window} with model.family={model.family}, which at Hugging Face "
        "has none: set model.sliding_window=null, or model.family=mistral",
    )


def _check_rope(scaling: RopeScaling) -> None:
    default = RopeScaling()
    for kind, keys in OF_ROPE_TYPE.items():
        for key in keys:
            _require(
                kind is scaling.rope_type or getattr(scaling, key) == getattr(default, key),
                f"model.rope_scaling.{key}={getattr(scaling, key)} has no effect with model.rope_scaling.rope_type="
                f"{scaling.rope_type}: remove it, or set model.rope_scaling.rope_type={kind}",
            )
    for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
        _require(
            getattr(scaling, low) < getattr(scaling, high),
            f"model.rope_scaling.{low}={getattr(scaling, low)} must be below model.rope_scaling.{high}="
            f"{getattr(scaling, high)}",
        )


def _check_layout(config: Config) -> None:
    _check_tensor(config.model, config.parallel)
    _check_context(config.model, config.parallel)
    _check_pipeline(config.model, config.parallel)
    trainer, parallel = config.trainer, config.parallel
    _require(
        trainer.num_nodes == 1 or config.launcher.name is not LauncherName.local,
        f"trainer.num_nodes={trainer.num_nodes}, but launcher=local has one node: set trainer.num_nodes=1",
    )
    _require(
        trainer.world_size % parallel.model_size == 0,
        f"trainer.devices={trainer.devices} * trainer.num_nodes={trainer.num_nodes} must be a multiple of "
        f"parallel.tensor={parallel.tensor} * parallel.pipeline={parallel.pipeline} * "
        f"parallel.context={parallel.context}: set trainer.devices={_nearest(trainer.world_size, parallel.model_size)}",
    )


def check_vocabulary(config: Config, vocabulary: int, where: str) -> None:
    """Raise ValueError unless the tensor-parallel ranks can share the vocabulary of ``where``."""
    tensor, model = config.parallel.tensor, config.model
    largest = math.gcd(vocabulary, model.num_query_groups, model.ffn_hidden_size)
    _require(
        vocabulary % tensor == 0,
        f"{where} has a vocabulary of {vocabulary}, which parallel.tensor={tensor} does not divide: "
        f"set parallel.tensor to {_divisors(largest)}",
    )


def _check_tensor(model: Model, parallel: Parallel) -> None:
    split = {"num_query_groups": model.num_query_groups, "ffn_hidden_size": model.ffn_hidden_size}
    if model.vocab_size is not None:
        split["vocab_size"] = model.vocab_size
    largest = math.gcd(*split.values())
    undivided = {key: size for key, size in split.items() if size % parallel.tensor}
    sizes = ", ".join(f"model.{key}={size}" for key, size in undivided.items())
    _require(
        largest % parallel.tensor == 0,
        f"parallel.tensor={parallel.tensor} must divide {sizes}: set parallel.tensor to {_divisors(largest)}",
    )
    _require(
        parallel.tensor > 1 or not parallel.sequence,
        "parallel.sequence=true needs parallel.tensor above 1: set parallel.sequence=false",
    )


def _check_pipeline(model: Model, parallel: Parallel) -> None:
    pipeline, virtual = parallel.pipeline, parallel.virtual_pipeline
    _require(
        virtual is None or (pipeline > 1 and virtual > 1),
        f"parallel.virtual_pipeline={virtual} with parallel.pipeline={pipeline}: both must be above 1, "
        "or set parallel.virtual_pipeline=null",
    )
    name, product = ("parallel.pipeline", pipeline) if virtual is None else ("their product", pipeline * virtual)
    _require(
        model.num_layers % product == 0,
        f"model.num_layers={model.num_layers} must be a multiple of parallel.pipeline={pipeline}"
        + (f" * parallel.virtual_pipeline={virtual}" if virtual else "")
        + f": set {name} to {_divisors(model.num_layers)}",
    )


def _check_context(model: Model, parallel: Parallel) -> None:
    comm, context, tensor = parallel.context_comm, parallel.context, parallel.tensor
    _require(
        comm is ContextComm.p2p or context > 1,
        f"parallel.context_comm={comm} has no effect with parallel.context=1: set parallel.context_comm=p2p",
    )
    groups = model.num_query_groups // tensor
    _require(
        comm is not ContextComm.a2a or groups % context == 0,
        f"parallel.context_comm=a2a needs model.num_query_groups={model.num_query_groups} / parallel.tensor={tensor} "
        f"to be a multiple of parallel.context={context}: set parallel.context_comm=p2p",
    )
    _require(
        model.sliding_window is None or context == 1 or comm is not ContextComm.p2p,
        f"model.sliding_window={model.sliding_window} with parallel.context={context} and parallel.context_comm=p2p, "
        "where Transformer Engine has no sliding window: set parallel.context_comm=all_gather or a2a",
    )
    _require(
        parallel.overlap_grad_reduce or not parallel.overlap_param_gather,
        "parallel.overlap_param_gather=true needs parallel.overlap_grad_reduce=true",
    )


def _check_packing(config: Config) -> None:
    data, trainer = config.data, config.trainer
    preferences = data.name is DataName.preferences
    _require(
        not preferences or trainer.micro_batch_size == 1,
        f"trainer.micro_batch_size={trainer.micro_batch_size} with data=preferences: set trainer.micro_batch_size=1, "
        "a row holds a whole preference",
    )
    _require(
        not data.pack or trainer.micro_batch_size == 1,
        f"trainer.micro_batch_size={trainer.micro_batch_size} with data.pack=true: set trainer.micro_batch_size=1, "
        "a packed row holds several documents already",
    )
    comm, window, context = config.parallel.context_comm, config.model.sliding_window, config.parallel.context
    packed = data.pack or preferences or any(name.weighs for name in config.objectives)
    _require(
        not packed or window is None or context == 1,
        f"model.sliding_window={window} with parallel.context={context} and packed rows (data.pack={_yaml(data.pack)}, "
        f"data.name={data.name}, objective.name={config.objective.name}): Transformer Engine takes them where it has "
        "no sliding window, set parallel.context=1",
    )
    _require(
        not (data.pack or preferences) or comm is not ContextComm.all_gather,
        f"parallel.context_comm={comm} with packed rows (data.pack={data.pack}, data.name={data.name}), which "
        "Transformer Engine does not take there: "
        "set parallel.context_comm=p2p or a2a",
    )
    _require(
        comm is not ContextComm.all_gather or not any(name.weighs for name in config.objectives),
        f"parallel.context_comm={comm} with objective.name={config.objective.name}: Transformer Engine takes no packed "
        "rows there, which LongCE's windows are, set parallel.context_comm=p2p or a2a",
    )
    _require(
        data.document_length is None or data.document_length <= data.seq_length,
        f"data.document_length={data.document_length} is longer than data.seq_length={data.seq_length}: "
        f"set data.document_length={data.seq_length} or less",
    )


def _check_memory(config: Config) -> None:
    trainer, layers, pipeline = config.trainer, config.trainer.offload_activations, config.parallel.pipeline
    _require(
        layers < config.model.num_layers,
        f"trainer.offload_activations={layers} must be below model.num_layers={config.model.num_layers}: "
        f"set trainer.offload_activations={config.model.num_layers - 1} or less",
    )
    _require(
        layers == 0 or (trainer.recompute is Recompute.none and pipeline == 1),
        f"trainer.offload_activations={layers} needs trainer.recompute=none (here {trainer.recompute}) and "
        f"parallel.pipeline=1 (here {pipeline}), or set trainer.offload_activations=0",
    )
    detection = config.objective.detection_recompute
    full = trainer.recompute is Recompute.full or detection is DetectionRecompute.full
    _require(
        trainer.mlp_chunks == 1 or full,
        f"trainer.mlp_chunks={trainer.mlp_chunks} has no effect with trainer.recompute={trainer.recompute}: "
        "set trainer.recompute=full, or trainer.mlp_chunks=1",
    )
    _require(
        layers == 0 or detection in (DetectionRecompute.auto, DetectionRecompute.none),
        f"objective.detection_recompute={detection} with trainer.offload_activations={layers}: "
        "set objective.detection_recompute=none",
    )
    _require(
        trainer.grad_dtype is Precision.fp32 or trainer.precision is Precision.bf16,
        f"trainer.grad_dtype={trainer.grad_dtype} with trainer.precision={trainer.precision}: "
        "set trainer.grad_dtype=fp32",
    )
    _require(
        config.optim.offload <= 1, f"optim.offload={config.optim.offload} is a share: set it to a number from 0 to 1"
    )


def _check_fp8(config: Config) -> None:
    trainer, parallel, model = config.trainer, config.parallel, config.model
    fp8, given = trainer.fp8, f"trainer.fp8={trainer.fp8}"
    if fp8 is FP8.none:
        return
    denoises = any(name.denoises for name in config.objectives)
    _require(
        fp8 is FP8.both or denoises,
        f"{given} has no effect with objective.name={config.objective.name}, which detects nothing: "
        "set trainer.fp8=both or none",
    )
    for key, value, wanted in (
        ("trainer.precision", trainer.precision, Precision.bf16),
        ("lora.rank", config.lora.rank, 0),
        ("trainer.offload_activations", trainer.offload_activations, 0),
    ):
        _require(value == wanted, f"{given} with {key}={value}: set {key}={wanted}, or trainer.fp8=none")
    other = next((name for name in config.objectives if name.weighs or name is ObjectiveName.logo), None)
    _require(fp8 is FP8.detection or other is None, f"{given} with objective {other}: set trainer.fp8=none")
    widths = {"model.hidden_size": model.hidden_size, "model.ffn_hidden_size": model.ffn_hidden_size}
    for key, width in (widths | {"all heads' queries": model.query_size, "all groups' keys": model.key_size}).items():
        _require(
            width % (FP8_MULTIPLE * parallel.tensor) == 0,
            f"{given} with {key}={width}, which must be a multiple of {FP8_MULTIPLE} * parallel.tensor="
            f"{FP8_MULTIPLE * parallel.tensor}: set trainer.fp8=none",
        )
    split = parallel.context * (parallel.tensor if parallel.sequence else 1) * trainer.mlp_chunks
    positions = config.data.seq_length * trainer.micro_batch_size
    _require(
        positions % (FP8_MULTIPLE * split) == 0,
        f"{given} with data.seq_length={config.data.seq_length} * trainer.micro_batch_size="
        f"{trainer.micro_batch_size}, which must be a multiple of {FP8_MULTIPLE} * {split} (what splits the sequence): "
        f"set data.seq_length={_nearest(config.data.seq_length, FP8_MULTIPLE * split, model.max_positions)}",
    )


def _check_batch(config: Config) -> None:
    trainer, pipeline = config.trainer, config.parallel.pipeline
    share = trainer.micro_batch_size * config.data_parallel
    if config.parallel.virtual_pipeline:
        share *= pipeline
    interleaved = f" * parallel.pipeline={pipeline} (interleaved)" if config.parallel.virtual_pipeline else ""
    _require(
        trainer.global_batch_size % share == 0,
        f"trainer.global_batch_size={trainer.global_batch_size} must be a multiple of trainer.micro_batch_size="
        f"{trainer.micro_batch_size} * {config.data_parallel} data-parallel ranks{interleaved}: "
        f"set trainer.global_batch_size={_nearest(trainer.global_batch_size, share)}",
    )


def _check_profile(trainer: Trainer) -> None:
    _require(
        not trainer.profile or trainer.max_steps >= PROFILED_STEP,
        f"trainer.max_steps={trainer.max_steps} with trainer.profile=true, which traces the {PROFILED_STEP}th step: "
        f"set trainer.max_steps={PROFILED_STEP} or more, or trainer.profile=false",
    )


def _check_lengths(config: Config) -> None:
    length, context, tensor = config.data.seq_length, config.parallel.context, config.parallel.tensor
    _require(
        length <= config.model.max_positions,
        f"data.seq_length={length} is longer than model.max_positions={config.model.max_positions}: "
        f"set data.seq_length={config.model.max_positions} or less",
    )
    shards = (2 * context if context > 1 else 1) * (tensor if config.parallel.sequence else 1)
    parts = ["2 * parallel.context"] * (context > 1) + ["parallel.tensor"] * config.parallel.sequence
    _require(
        length % shards == 0,
        f"data.seq_length={length} must be a multiple of {' * '.join(parts)} = {shards}: "
        f"set data.seq_length={_nearest(length, shards, config.model.max_positions)}",
    )


def _check_objective(config: Config) -> None:
    lr = config.objective.lr
    number = isinstance(lr, (int, float)) and not isinstance(lr, bool)
    _require(lr == "scheduled" or number, f"objective.lr={lr}: set it to scheduled or to a number above 0")
    _require(
        config.compare_to != config.objective.name,
        f"compare_to={config.compare_to} is objective.name itself: set compare_to=null",
    )
    _require(
        config.objectives != {ObjectiveName.ce, ObjectiveName.sft},
        f"compare_to={config.compare_to} trains what objective.name={config.objective.name} does: sft is ce on data "
        "whose prompts are masked, set compare_to=null",
    )
    _check_longce(config)
    _check_logo(config)


def _check_longppl(config: Config) -> None:
    how = config.longppl
    if how.evaluator is None:
        changed = [f"longppl.{k}={v}" for k, v in walk(how) if v != getattr(LongPPL(), k)]
        _require(not changed, f"{' '.join(changed)} has no effect without an evaluator: set longppl.evaluator=DIR")
        return
    _require(
        config.trainer.val_interval > 0,
        f"longppl.evaluator={how.evaluator} has no effect with trainer.val_interval=0: set trainer.val_interval",
    )
    longest = (config.data.document_length or config.data.seq_length) + 1
    _require(
        how.context < longest,
        f"longppl.context={how.context}, but documents have at most {longest} tokens, so that none is key: set "
        f"longppl.context={longest // 2} or less, or data.seq_length",
    )


def _check_longce(config: Config) -> None:
    objective = config.objective
    if not any(name.weighs for name in config.objectives):
        _check_unused(objective, OF_LONGCE, "longce")
        return
    longest = (config.data.document_length or config.data.seq_length) + 1
    _require(
        objective.window < longest,
        f"objective.window={objective.window}, but documents have at most {longest} tokens: LongCE would weigh none, "
        f"set objective.window={longest // 2} or less, or data.seq_length",
    )


def _check_logo(config: Config) -> None:
    objective, data = config.objective, config.data
    if ObjectiveName.logo not in config.objectives:
        _check_unused(objective, OF_LOGO, "logo")
    for key, name in (("objective.name", objective.name), ("compare_to", config.compare_to or objective.name)):
        _require(
            (name is ObjectiveName.logo) == (data.name is DataName.preferences),
            f"{key}={name} with data.name={data.name}: logo, and it alone, trains on preferences, set "
            f"{'data=preferences' if name is ObjectiveName.logo else 'objective=logo'} compare_to=null",
        )
    if data.name is DataName.preferences:
        for key, value, only in (
            ("pack", data.pack, "false"),
            ("document_length", data.document_length, "null"),
            ("truncate", data.truncate, "false"),
        ):
            _require(
                not value,
                f"data.{key}={value} with data=preferences, whose rows hold whole answers: set data.{key}={only}",
            )


def _check_unused(objective: Objective, names: Iterable[str], of: str) -> None:
    default = Objective()
    values = {name: getattr(objective, name) for name in names}
    unused = [f"objective.{name}={value}" for name, value in values.items() if value != getattr(default, name)]
    _require(not unused, f"{' '.join(unused)} has no effect with objective.name={objective.name}: set objective={of}")


def _check_optim(config: Config) -> None:
    optim, steps = config.optim, config.trainer.max_steps
    _require(
        optim.min_lr <= optim.lr,
        f"optim.min_lr={optim.min_lr} is above optim.lr={optim.lr}: set optim.min_lr={optim.lr} or less",
    )
    _require(
        optim.warmup_steps < steps,
        f"optim.warmup_steps={optim.warmup_steps} must be below trainer.max_steps={steps}: "
        f"set optim.warmup_steps={steps - 1} or less",
    )
    for name, beta in (("beta1", optim.beta1), ("beta2", optim.beta2)):
        _require(beta < 1, f"optim.{name}={beta}: set it below 1")


def _check_lora(config: Config) -> None:
    lora, init, parallel = config.lora, config.init, config.parallel
    if lora.rank == 0:
        default = dict(walk(Lora()))
        unused = [f"lora.{name}={value}" for name, value in walk(lora) if value != default[name]]
        _require(not unused, f"{' '.join(unused)} has no effect with lora.rank=0: set lora.rank, or lora=none")
        return
    _require(
        bool(init.hf or init.nemo),
        f"lora.rank={lora.rank} adapts weights that are there, but init.hf=null and init.nemo=null: "
        "set init.hf=DIR, or lora=none",
    )
    _require(
        lora.rank % parallel.tensor == 0,
        f"lora.rank={lora.rank} must be a multiple of parallel.tensor={parallel.tensor}: "
        f"set lora.rank={_nearest(lora.rank, parallel.tensor)}",
    )
    _require(
        parallel.virtual_pipeline is None,
        f"parallel.virtual_pipeline={parallel.virtual_pipeline} with lora.rank={lora.rank}, of whose adapters NeMo "
        "would save none: set parallel.virtual_pipeline=null",
    )
    _require(lora.dropout < 1, f"lora.dropout={lora.dropout}: set it below 1")
    targets = [str(target) for target in lora.targets]
    _require(
        bool(targets) and len(targets) == len(set(targets)),
        f"lora.targets=[{','.join(targets)}]: set it to some of {','.join(LoraTarget)}, each once",
    )


def _check_data(config: Config) -> None:
    data, interval = config.data, config.trainer.val_interval
    if data.name is DataName.multihop:
        _require(bool(data.hops) and set(data.hops) <= HOPS, f"data.hops={data.hops}: set it to [3], [4] or [3,4]")
    if data.name is not DataName.multihop:
        _require(
            data.path is not None,
            f"data.path=null with data={data.name}, which has no rows of its own: "
            f"set data.path={'DIR' if data.name.is_prepared else 'FILE'}",
        )
    if data.name.is_prepared:
        _check_settings_of_prepared(data)
    _require(
        interval == 0 or data.validation_samples > 0 or data.validation_path is not None,
        f"data.validation_samples=0 with trainer.val_interval={interval}: set trainer.val_interval=0",
    )
    whole = config.trainer.global_batch_size
    _require(
        interval == 0 or data.validation_samples % whole == 0,
        f"data.validation_samples={data.validation_samples} must be a multiple of trainer.global_batch_size={whole}, "
        f"or the rest is never validated on: set data.validation_samples={_nearest(data.validation_samples, whole)}",
    )


def _check_settings_of_prepared(data: Data) -> None:
    _require(
        data.validation_path is None,
        f"data.validation_path={data.validation_path} with data={data.name}, whose folder has its own: set it to null",
    )
    _require(not data.truncate, f"data.truncate=true with data={data.name}: prepare it with a lower max_tokens")
    if data.name is DataName.pretrain:
        for key, value, only in (("pack", data.pack, False), ("shuffle", data.shuffle, True)):
            _require(
                value is only,
                f"data.{key}={str(value).lower()} with data=pretrain, whose rows are one document each, shuffled by "
                f"Megatron: set data.{key}={str(only).lower()}, or data=prepared",
            )


def _check_data_files(config: Config) -> None:
    data = config.data
    for name, path in (("data.path", data.path), ("data.validation_path", data.validation_path)):
        if path is not None:
            _check_readable(name, Path(path), folder=data.name is DataName.multihop or data.name.is_prepared)


def _check_prepared(config: Config) -> None:
    data, folder = config.data, config.data.path
    try:
        summary = read_summary(Path(folder or ""))
    except ValueError as error:
        raise ValueError(f"data.path={error}") from error
    tokenizer = summary["tokenizer"]
    _require(
        fingerprint(config.tokenizer) == tokenizer["fingerprint"],
        f"model.tokenizer={config.tokenizer} is not the tokenizer that data.path={folder} was prepared with, "
        f"{tokenizer['path']}: set model.tokenizer to that, or prepare it again",
    )
    train, held_out = summary[TRAIN], summary[VALIDATION]
    limit = data.document_length or data.seq_length
    _require(
        ObjectiveName.sft not in config.objectives or train["unprompted"] == 0,
        f"objective=sft trains on answers alone, but {train['unprompted']} documents of data.path={folder} are "
        "labelled throughout: set objective=ce",
    )
    if data.name is DataName.pretrain:
        _require(
            train["shortest"] == train["longest"] == data.seq_length,
            f"data.seq_length={data.seq_length} with data=pretrain, but the documents of data.path={folder} have "
            f"{train['shortest']} to {train['longest']} tokens: set data.seq_length to that, or data=prepared",
        )
    longest = max(train["longest"], held_out["longest"]) - 1
    _require(
        longest <= limit,
        f"data.{'document_length' if data.document_length else 'seq_length'}={limit} is shorter than the {longest} "
        f"positions of the longest document of data.path={folder}: set it to {longest} or more",
    )
    _require(
        config.trainer.val_interval == 0 or data.validation_samples <= held_out["documents"],
        f"data.validation_samples={data.validation_samples}, but data.path={folder} holds out "
        f"{held_out['documents']} documents: set data.validation_samples to that or less, or trainer.val_interval=0",
    )


def _check_readable(name: str, path: Path, folder: bool) -> None:
    """A file that is there, is readable and holds something; or, where ``folder``, a folder."""
    _require(path.exists(), f"{name}={path} does not exist")
    _require(folder or path.is_file(), f"{name}={path} is no file: set {name}=FILE")
    _require(os.access(path, os.R_OK), f"{name}={path} is not readable")
    _require(not path.is_file() or path.stat().st_size > 0, f"{name}={path} is empty")


def _check_sources(config: Config) -> None:
    init, tokenizer = config.init, config.tokenizer
    _require(not (init.hf and init.nemo), f"init.hf={init.hf} and init.nemo={init.nemo}: set one of them to null")
    for name, folder in (("init.hf", init.hf), ("init.nemo", init.nemo)):
        if folder is not None:
            _require(Path(folder).is_dir(), f"{name}={folder} is no folder")
    if init.hf is not None:
        _check_hf_model(config, Path(init.hf))
    _require(
        config.longppl.evaluator is None or Path(config.longppl.evaluator, "config.json").is_file(),
        f"longppl.evaluator={config.longppl.evaluator} is no Hugging Face folder: it has no config.json",
    )
    _require(
        init.nemo is None or not Path(init.nemo, "weights/adapter_metadata.json").exists(),
        f"init.nemo={init.nemo} holds adapters alone: `nemo-cdt convert {init.nemo} DIR` merges them into what they "
        "adapt, then set init.hf=DIR",
    )
    start = f"init.hf={init.hf}" if init.hf else f"init.nemo={init.nemo}"
    _require(
        not (init.hf or init.nemo) or config.model.tokenizer is not None or tokenizer != "byte",
        f"{start} holds weights without a tokenizer: set model.tokenizer to their tokenizer's folder, or to byte",
    )
    if tokenizer != "byte":
        _require(
            Path(tokenizer).is_dir(),
            f"model.tokenizer={tokenizer} is no folder: set it to a tokenizer's folder, or to byte",
        )


def _check_hf_model(config: Config, folder: Path) -> None:
    try:
        described = json.loads((folder / "config.json").read_text())
        kind, vocabulary = described["model_type"], described.get("vocab_size", 0)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"init.hf={folder} is no Hugging Face model: it has no readable config.json") from error
    known = ", ".join(Family)
    _require(kind in [*Family], f"init.hf={folder} is a {kind} model: set init.hf to the folder of one of {known}")
    family = config.model.family
    _require(
        kind == family,
        f"init.hf={folder} is a {kind} model, but model={config.model.name} has model.family={family}: "
        "set model to that of init.hf",
    )
    sizes = {ours: described.get(theirs) for ours, theirs in SIZES.items()}
    wrong = {ours: size for ours, size in sizes.items() if size not in (None, getattr(config.model, ours))}
    _require(
        not wrong,
        f"model={config.model.name} is another size than init.hf={folder}: set model to that of init.hf, or "
        + " ".join(f"model.{name}={size}" for name, size in wrong.items()),
    )
    check_vocabulary(config, vocabulary, f"init.hf={folder}")


SIZES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
}
"""Ours, and what ``config.json`` calls them. The rest is compared when the weights are read, by transformers' rules."""


def _check_output(config: Config) -> None:
    output = Path(config.output)
    for name, value in (("name", config.name), ("output", config.output)):
        _require(value != "", f"{name} is empty: set {name} to a name of the run's own")
    _require(
        config.resume or not (output / "config.yaml").exists(),
        f"output={output} already holds a run: set resume=true to continue it, or another output, or remove it",
    )
    _require(
        (output / "config.yaml").exists() or not any(output.glob("checkpoints/step=*")),
        f"output={output} has checkpoints, but no config.yaml that says of what: bring it back, or set another output",
    )
    _check_writable("output", output)
    earlier = earlier_attempt(config)
    if earlier is not None:
        require_same_run(config, earlier)
    if config.export.hf is not None:
        _check_export(config, earlier, Path(config.export.hf))


def _check_export(config: Config, earlier: Config | None, folder: Path) -> None:
    _check_writable("export.hf", folder)
    _require(
        config.init.hf is None or folder.resolve() != Path(config.init.hf).resolve(),
        f"export.hf={folder} is init.hf itself: set another folder",
    )
    _require(
        (earlier is not None and earlier.export.hf == config.export.hf)  # what is there is that attempt's: replaced
        or not folder.is_dir()
        or not any(folder.iterdir()),
        f"export.hf={folder} is not empty: set another folder",
    )


def _check_writable(name: str, path: Path) -> None:
    parent = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    _require(parent.is_dir(), f"{name}={path}: {parent} is a file, set {name} to a folder")
    _require(os.access(parent, os.W_OK), f"{name}={path}: {parent} is not writable")


def _nearest(value: int, divisor: int, most: float = math.inf) -> int:
    """The multiple of ``divisor`` nearest to ``value``, at least one ``divisor``."""
    below = value // divisor * divisor
    above = below + divisor
    return above if below == 0 or (above - value <= value - below and above <= most) else below


def _yaml(value: bool) -> str:
    return str(value).lower()


def divisors(value: int) -> list[int]:
    return [divisor for divisor in range(1, value + 1) if value % divisor == 0]


def _divisors(value: int) -> str:
    return ", ".join(map(str, divisors(value)))
