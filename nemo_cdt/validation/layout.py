"""Whether model, rows and batch can be split among the ranks as a run says."""

import math
from functools import partial
from importlib import metadata

from packaging.version import Version

from nemo_cdt.config import Config, ContextComm, DataName, Model, Packing, Parallel
from nemo_cdt.config.launcher import LauncherName
from nemo_cdt.objectives import objectives_of
from nemo_cdt.objectives.cdt.settings import ThresholdScope, detection_settings
from nemo_cdt.validation.memory import check_fp8, check_memory, check_profile
from nemo_cdt.validation.rules import listed, nearest, require, require_all, yaml


def validate_layout(config: Config) -> None:
    """Raise ValueError where model and batch cannot be split as ``config`` says; part of :func:`validate`."""
    checks = (_check_ranks, _check_batch, _check_lengths, _check_packing, check_memory, check_fp8)
    require_all(partial(check_profile, config.trainer), *(partial(check, config) for check in checks))


def _check_ranks(config: Config) -> None:
    _check_tensor(config.model, config.parallel)
    _check_context(config.model, config.parallel)
    _check_pipeline(config.model, config.parallel)
    trainer, parallel = config.trainer, config.parallel
    require(
        trainer.num_nodes == 1 or config.launcher.name is not LauncherName.local,
        f"trainer.num_nodes={trainer.num_nodes}, but launcher=local has one node: set trainer.num_nodes=1",
    )
    require(
        trainer.world_size % parallel.model_size == 0,
        f"trainer.devices={trainer.devices} * trainer.num_nodes={trainer.num_nodes} must be a multiple of "
        f"parallel.tensor={parallel.tensor} * parallel.pipeline={parallel.pipeline} * "
        f"parallel.context={parallel.context}: set trainer.devices={nearest(trainer.world_size, parallel.model_size)}",
    )


def check_vocabulary(config: Config, vocabulary: int, where: str) -> None:
    """Raise ValueError unless the tensor-parallel ranks can share the vocabulary of ``where``."""
    tensor, model = config.parallel.tensor, config.model
    largest = math.gcd(vocabulary, model.num_query_groups, model.ffn_hidden_size)
    require(
        vocabulary % tensor == 0,
        f"{where} has a vocabulary of {vocabulary}, which parallel.tensor={tensor} does not divide: "
        f"set parallel.tensor to {listed(largest)}",
    )


def _check_tensor(model: Model, parallel: Parallel) -> None:
    split = {"num_query_groups": model.num_query_groups, "ffn_hidden_size": model.ffn_hidden_size}
    if model.vocab_size is not None:
        split["vocab_size"] = model.vocab_size
    largest = math.gcd(*split.values())
    undivided = {key: size for key, size in split.items() if size % parallel.tensor}
    sizes = ", ".join(f"model.{key}={size}" for key, size in undivided.items())
    require(
        largest % parallel.tensor == 0,
        f"parallel.tensor={parallel.tensor} must divide {sizes}: set parallel.tensor to {listed(largest)}",
    )
    require(
        parallel.tensor > 1 or not parallel.sequence,
        "parallel.sequence=true needs parallel.tensor above 1: set parallel.sequence=false",
    )


def _check_pipeline(model: Model, parallel: Parallel) -> None:
    pipeline, virtual = parallel.pipeline, parallel.virtual_pipeline
    require(
        virtual is None or (pipeline > 1 and virtual > 1),
        f"parallel.virtual_pipeline={virtual} with parallel.pipeline={pipeline}: both must be above 1, "
        "or set parallel.virtual_pipeline=null",
    )
    name, product = ("parallel.pipeline", pipeline) if virtual is None else ("their product", pipeline * virtual)
    require(
        model.num_layers % product == 0,
        f"model.num_layers={model.num_layers} must be a multiple of parallel.pipeline={pipeline}"
        + (f" * parallel.virtual_pipeline={virtual}" if virtual else "")
        + f": set {name} to {listed(model.num_layers)}",
    )


def _check_context(model: Model, parallel: Parallel) -> None:
    comm, context, tensor = parallel.context_comm, parallel.context, parallel.tensor
    require(
        comm is ContextComm.p2p or context > 1,
        f"parallel.context_comm={comm} has no effect with parallel.context=1: set parallel.context_comm=p2p",
    )
    groups = model.num_query_groups // tensor
    require(
        comm is not ContextComm.a2a or groups % context == 0,
        f"parallel.context_comm=a2a needs model.num_query_groups={model.num_query_groups} / parallel.tensor={tensor} "
        f"to be a multiple of parallel.context={context}: set parallel.context_comm=p2p",
    )
    require(
        model.sliding_window is None or context == 1 or comm is not ContextComm.p2p,
        f"model.sliding_window={model.sliding_window} with parallel.context={context} and parallel.context_comm=p2p, "
        "where Transformer Engine has no sliding window: set parallel.context_comm=all_gather or a2a",
    )
    require(
        parallel.overlap_grad_reduce or not parallel.overlap_param_gather,
        "parallel.overlap_param_gather=true needs parallel.overlap_grad_reduce=true",
    )


def _check_batch(config: Config) -> None:
    trainer, pipeline = config.trainer, config.parallel.pipeline
    share = trainer.micro_batch_size * config.data_parallel
    if config.parallel.virtual_pipeline:
        share *= pipeline
    interleaved = f" * parallel.pipeline={pipeline} (interleaved)" if config.parallel.virtual_pipeline else ""
    require(
        trainer.global_batch_size % share == 0,
        f"trainer.global_batch_size={trainer.global_batch_size} must be a multiple of trainer.micro_batch_size="
        f"{trainer.micro_batch_size} * {config.data_parallel} data-parallel ranks{interleaved}: "
        f"set trainer.global_batch_size={nearest(trainer.global_batch_size, share)}",
    )


def _check_lengths(config: Config) -> None:
    length, context, tensor = config.data.seq_length, config.parallel.context, config.parallel.tensor
    require(
        length <= config.model.max_positions,
        f"data.seq_length={length} is longer than model.max_positions={config.model.max_positions}: "
        f"set data.seq_length={config.model.max_positions} or less",
    )
    shards = (2 * context if context > 1 else 1) * (tensor if config.parallel.sequence else 1)
    parts = ["2 * parallel.context"] * (context > 1) + ["parallel.tensor"] * config.parallel.sequence
    require(
        length % shards == 0,
        f"data.seq_length={length} must be a multiple of {' * '.join(parts)} = {shards}: "
        f"set data.seq_length={nearest(length, shards, config.model.max_positions)}",
    )


def _check_packing(config: Config) -> None:
    data, trainer = config.data, config.trainer
    preferences = data.name is DataName.preferences
    require(
        not preferences or trainer.micro_batch_size == 1,
        f"trainer.micro_batch_size={trainer.micro_batch_size} with data=preferences: set trainer.micro_batch_size=1, "
        "a row holds a whole preference",
    )
    require(
        not data.pack or trainer.micro_batch_size == 1,
        f"trainer.micro_batch_size={trainer.micro_batch_size} with data.pack=true: set trainer.micro_batch_size=1, "
        "a packed row holds several documents already",
    )
    require(
        data.pack or data.packing is Packing.balanced,
        f"data.packing={data.packing} needs data.pack=true: set data.pack=true, or data.packing=balanced",
    )
    scopes = {detection_settings(one.settings).threshold_scope for one in objectives_of(config) if one.detects}
    require(
        not config.deals or ThresholdScope.row not in scopes,
        f"objective.threshold_scope=row with data.packing={data.packing}, where the documents of a row depend on the "
        "number of GPUs: set data.packing=sequential, or objective.threshold_scope=document",
    )
    comm, window, context = config.parallel.context_comm, config.model.sliding_window, config.parallel.context
    packed = data.pack or preferences or any(one.packs for one in objectives_of(config))
    require(
        not packed or window is None or context == 1,
        f"model.sliding_window={window} with parallel.context={context} and packed rows (data.pack={yaml(data.pack)}, "
        f"data.name={data.name}, objective.name={config.objective.name}): Transformer Engine takes them where it has "
        "no sliding window, set parallel.context=1",
    )
    require(
        not (data.pack or preferences) or comm is not ContextComm.all_gather,
        f"parallel.context_comm={comm} with packed rows (data.pack={data.pack}, data.name={data.name}), which "
        "Transformer Engine does not take there: "
        "set parallel.context_comm=p2p or a2a",
    )
    engine = _transformer_engine()
    require(
        not packed or comm is not ContextComm.a2a or engine is None or engine >= PACKED_A2A,
        f"parallel.context_comm=a2a with packed rows (data.pack={yaml(data.pack)}, objective.name="
        f"{config.objective.name}): Transformer Engine takes them there from {PACKED_A2A} on, and here is {engine}, "
        "set parallel.context_comm=p2p",
    )
    require(
        preferences or comm is not ContextComm.all_gather or not any(one.packs for one in objectives_of(config)),
        f"parallel.context_comm={comm} with objective.name={config.objective.name}: Transformer Engine takes no packed "
        "rows there, which this objective runs, set parallel.context_comm=p2p or a2a",
    )
    require(
        data.document_length is None or data.document_length <= data.seq_length,
        f"data.document_length={data.document_length} is longer than data.seq_length={data.seq_length}: "
        f"set data.document_length={data.seq_length} or less",
    )


PACKED_A2A = Version("2.10")


def _transformer_engine() -> Version | None:
    """That of this environment; on a machine without it the job's is not known."""
    try:
        return Version(metadata.version("transformer-engine"))
    except metadata.PackageNotFoundError:
        return None
