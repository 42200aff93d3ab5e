"""Every way to split a run over a cluster that fits, the fastest first."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from nemo_cdt.config import Config, ContextComm, DataName, Precision, Recompute, walk
from nemo_cdt.cost import memory
from nemo_cdt.cost.cluster import Planned
from nemo_cdt.cost.memory import GIB, Memory
from nemo_cdt.cost.steptime import StepTime, step_time
from nemo_cdt.objectives import objective_of
from nemo_cdt.validation import validate_layout
from nemo_cdt.validation.rules import divisors

MICRO_BATCHES = [1, 2, 4, 8]
MLP_CHUNKS = 8


@dataclass(kw_only=True, slots=True)
class Plan:
    """One way. In ``config`` the whole cluster is one node, ``why`` is of ``detection``."""

    config: Config
    detection: Recompute
    why: str
    memory: Memory
    time: StepTime


def plans(wanted: Planned, held: Collection[str]) -> list[Plan]:
    """What fits, the fastest first. Keys in ``held`` keep the values they have in ``wanted``.

    Raises:
        ValueError: where nothing does; it says which part is too large, and what would fit.
    """
    every = list(_plans(wanted, held))
    if not every:
        raise ValueError(_no_layout(wanted, held))
    fitting = [plan for plan in every if plan.memory.total <= wanted.cluster.memory_bytes]
    if not fitting:
        raise ValueError(_nothing_fits(wanted, held, min(every, key=lambda plan: plan.memory.total)))
    return sorted(fitting, key=lambda plan: (plan.time.total, plan.memory.total))


def _plans(wanted: Planned, held: Collection[str]) -> Iterator[Plan]:
    """Every split that validation lets pass."""
    for config in _splits(wanted, held):
        if _refusal(config) is None:
            detection, why = memory.detection_recompute(config, wanted.cluster.memory_bytes)
            yield Plan(
                config=config,
                detection=detection,
                why=why,
                memory=memory.peak(config, detection),
                time=step_time(config, wanted.cluster, detection),
            )


def _refusal(config: Config) -> str | None:
    try:
        validate_layout(config)
    except ValueError as error:
        return str(error)
    return None


def _splits(wanted: Planned, held: Collection[str]) -> Iterator[Config]:
    values, gpus = dict(walk(wanted)), wanted.cluster.gpus

    def options(key: str, of: list) -> list:
        return [values[key]] if key in held else of

    packs = wanted.data.pack or wanted.data.name is DataName.preferences or objective_of(wanted).packs
    sizes = [options(f"parallel.{key}", divisors(gpus)) for key in ("tensor", "context", "pipeline")]
    for tensor, context, pipeline in product(*sizes):
        if tensor > wanted.cluster.gpus_per_node or gpus % (tensor * context * pipeline):
            continue
        chunks = [None, *divisors(wanted.model.num_layers // pipeline)[1:]] if pipeline > 1 else [None]
        # Packed documents travel fastest by p2p: 1.68 s a step beside a2a's 1.95 (two H200s, CP2, 64K tokens a GPU).
        comms = list(ContextComm) if context > 1 and not packs else [ContextComm.p2p]
        for virtual, comm, sequence, size, recompute, mlp_chunks in product(
            options("parallel.virtual_pipeline", chunks),
            options("parallel.context_comm", comms),
            options("parallel.sequence", [tensor > 1]),
            options("trainer.micro_batch_size", MICRO_BATCHES),
            options("trainer.recompute", list(Recompute)),
            options("trainer.mlp_chunks", [1, MLP_CHUNKS]),
        ):
            parallel = replace(
                wanted.parallel,
                tensor=tensor,
                context=context,
                pipeline=pipeline,
                virtual_pipeline=virtual,
                context_comm=comm,
                sequence=sequence,
            )
            trainer = replace(
                wanted.trainer,
                devices=gpus,
                num_nodes=1,
                micro_batch_size=size,
                recompute=recompute,
                mlp_chunks=mlp_chunks,
            )
            yield replace(wanted, parallel=parallel, trainer=trainer)


def _no_layout(wanted: Planned, held: Collection[str]) -> str:
    asked = ", ".join(f"{key}={value}" for key, value in walk(wanted) if key in held and key.startswith("parallel."))
    refusals = (_refusal(config) for config in _splits(wanted, held))
    return next(refusals, None) or f"no layout of {wanted.cluster.gpus} GPUs has {asked}: set fewer of them"


def _nothing_fits(wanted: Planned, held: Collection[str], smallest: Plan) -> str:
    cluster, config = wanted.cluster, smallest.config
    part, size = smallest.memory.largest
    sizes = {"TP": config.parallel.tensor, "CP": config.parallel.context, "PP": config.parallel.pipeline}
    layout = " ".join(f"{name}{size}" for name, size in sizes.items() if size > 1) or "one GPU for each model"
    return (
        f"nothing fits {cluster.gpus} {cluster.gpu} of {cluster.memory_gib:g} GiB: the smallest, {layout} with "
        f"trainer.recompute={config.trainer.recompute}, needs {smallest.memory.total / GIB:.1f} GiB, "
        f"{size / GIB:.1f} of it {part}; what fits, each alone: "
        f"{', '.join(_remedies(wanted, held)) or 'nothing that was tried'}"
    )


def _remedies(wanted: Planned, held: Collection[str]) -> Iterator[str]:
    """The smallest change of each kind that makes it fit."""
    gpus, length = wanted.cluster.gpus, wanted.data.seq_length
    kinds: list[tuple[str, Sequence]] = [
        ("trainer.recompute", [Recompute.full] if "trainer.recompute" in held else []),
        ("trainer.grad_dtype", [Precision.bf16]),
        ("optim.offload", [0.5, 1.0]),
        ("cluster.gpus", [gpus * 2**power for power in range(1, 8)]),
        ("data.seq_length", [length // 2**power for power in range(1, 8)]),
    ]
    for key, values in kinds:
        for value in values:
            changed = _changed(wanted, key, value)
            if any(plan.memory.total <= wanted.cluster.memory_bytes for plan in _plans(changed, held)):
                yield f"{key}={value}"
                break


def _changed(wanted: Planned, key: str, value: object) -> Planned:
    section, name = key.split(".")
    return replace(wanted, **{section: replace(getattr(wanted, section), **{name: value})})
