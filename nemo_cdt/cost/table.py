"""Plans for people and for programs."""

import json
import shlex
from dataclasses import asdict
from typing import Any

from nemo_cdt.config import FP8, Config, DataName
from nemo_cdt.config.launcher import LauncherName
from nemo_cdt.cost import flops
from nemo_cdt.cost.cluster import Cluster
from nemo_cdt.cost.memory import GIB, checkpoint_bytes, saving_host_bytes
from nemo_cdt.cost.plan import Plan
from nemo_cdt.cost.request import Request
from nemo_cdt.cost.steptime import mfu, own_cost, save_time, tokens_per_second
from nemo_cdt.objectives import objective_of

SHOWN = 16
PARTS = ("parameters", "gradients", "optimizer", "activations", "deltas", "head", "layer", "runtime", "total")
SPLIT = ("tensor", "sequence", "context", "context_comm", "pipeline", "virtual_pipeline")
HEADER = (
    "  # TP SP CP exchange   PP VPP  DP mb recompute detection"
    "| params grads optim  acts work rest   GiB| step s  tok/s  MFU"
)
LEGEND = """\
mb: micro-batch. mlp8: MLPs in 8 chunks. work: one chunk's logits or one layer's backward, the larger.
rest: deltas, CUDA, fragmentation. tok/s: of one GPU. MFU: both passes, nothing counted twice."""


def record(plan: Plan, cluster: Cluster) -> dict[str, Any]:
    """A plan as JSON has it: layout, estimates, and the recipe's overrides that choose it."""
    config, seconds = plan.config, plan.time.total
    denoises = _denoises(config)
    return {
        "parallel": {key: getattr(config.parallel, key) for key in SPLIT} | {"data": config.data_parallel},
        "micro_batch_size": config.trainer.micro_batch_size,
        "recompute": config.trainer.recompute,
        "mlp_chunks": config.trainer.mlp_chunks,
        "detection_recompute": plan.detection if denoises else None,
        "memory_gib": {part: getattr(plan.memory, part) / GIB for part in PARTS},
        "save": asdict(save_time(config, cluster)) | {"node_host_gib": _node_host_gib(plan, cluster)},
        "step_seconds": asdict(plan.time) | {"total": seconds},
        "tokens_per_second_per_gpu": tokens_per_second(config, seconds),
        "mfu": mfu(config, cluster, seconds),
        "cdt_to_ce_flops": _floor(plan) if denoises else None,
        "overrides": overrides(plan, cluster),
    }


def overrides(plan: Plan, cluster: Cluster) -> list[str]:
    """What chooses this plan on the recipe's command line."""
    config, nodes = plan.config, -(-cluster.gpus // cluster.gpus_per_node)
    chosen: dict[str, Any] = {
        "trainer.devices": cluster.gpus // nodes,
        "trainer.num_nodes": nodes,
        "trainer.micro_batch_size": config.trainer.micro_batch_size,
        "trainer.recompute": config.trainer.recompute,
        "trainer.mlp_chunks": config.trainer.mlp_chunks,
    }
    if _denoises(config):
        chosen["objective.detection_recompute"] = plan.detection
    chosen |= {f"parallel.{key}": getattr(config.parallel, key) for key in SPLIT}
    return [f"{key}={_spelled(value)}" for key, value in chosen.items()]


def table(plans: list[Plan], request: Request) -> str:
    """The fastest plan of each tensor, context and pipeline size; then the first of all, as a command."""
    config, cluster = request.config, request.config.cluster
    fastest: dict[tuple[int, int, int], Plan] = {}
    for plan in plans:
        parallel = plan.config.parallel
        fastest.setdefault((parallel.tensor, parallel.context, parallel.pipeline), plan)
    shown = list(fastest.values())[:SHOWN]
    rest = f"{request.output} has them all" if request.output else "output=FILE writes them all as JSON"
    return "\n".join(
        [
            f"{config.model.name}, objective {config.objective.name}: {config.trainer.global_batch_size} sequences of "
            f"{config.data.seq_length:,} tokens a step, all labelled,",
            f"on {cluster.gpus} {cluster.gpu} of {cluster.memory_gib:g} GiB. "
            "Memory, in GiB of a GPU, and time are estimates.",
            "",
            HEADER,
            *(_line(rank, plan, cluster) for rank, plan in enumerate(shown, start=1)),
            "",
            LEGEND,
            f"{len(plans)} plans fit, shown is the fastest of each TP, CP and PP: {rest}.",
            *([f"In the first, {plans[0].why}."] if _denoises(config) else []),
            *([] if config.lora.rank else [_on_disk(config)]),
            *(
                [f"Of bf16: trainer.fp8={config.trainer.fp8} is not in them."]
                if config.trainer.fp8 is not FP8.none
                else []
            ),
            _saving(plans[0], cluster),
            "",
            f"nemo-cdt train {shlex.join(command(plans[0], request))}",
        ]
    )


def _on_disk(config: Config) -> str:
    whole, weights = (checkpoint_bytes(config, optimizer=optimizer) / GIB for optimizer in (True, False))
    return f"A checkpoint has {whole:,.1f} GiB on disk, the exported model {weights:,.1f}."


def command(plan: Plan, request: Request) -> list[str]:
    """The recipe's arguments: what was asked of it, what the plan chose, and what is still to be named."""
    chosen = overrides(plan, request.config.cluster)
    mine = {override.partition("=")[0] for override in chosen}
    asked = [override for override in request.overrides if override.partition("=")[0] not in mine]
    config, cluster = request.config, request.config.cluster
    missing = {
        "data.path=FILE": config.data.name is not DataName.multihop and config.data.path is None,
        "init.hf=DIR": config.init.hf is None
        and config.model.vocab_size is not None
        and config.tokenizer == "byte",  # its weights and tokenizer
        "launcher=NAME": cluster.gpus > cluster.gpus_per_node and config.launcher.name is LauncherName.local,
    }
    return [*asked, *chosen, *(name for name, is_missing in missing.items() if is_missing)]


def as_json(plans: list[Plan], request: Request) -> str:
    config = request.config
    return json.dumps(
        {
            "model": config.model.name,
            "objective": config.objective.name,
            "seq_length": config.data.seq_length,
            "global_batch_size": config.trainer.global_batch_size,
            "cluster": asdict(config.cluster),
            "plans": [record(plan, config.cluster) for plan in plans],
        },
        indent=1,
    )


def _line(rank: int, plan: Plan, cluster: Cluster) -> str:
    config, parallel, memory, seconds = plan.config, plan.config.parallel, plan.memory, plan.time.total
    comm = parallel.context_comm if parallel.context > 1 else ""
    detection = plan.detection if _denoises(config) else ""
    recompute = config.trainer.recompute + (f" mlp{config.trainer.mlp_chunks}" if config.trainer.mlp_chunks > 1 else "")
    parts = (memory.parameters, memory.gradients, memory.optimizer, memory.activations)
    params, grads, optim, acts = (part / GIB for part in parts)
    return (
        f"{rank:3}{parallel.tensor:3} {'yes' if parallel.sequence else 'no':3}{parallel.context:2} {comm:10}"
        f"{parallel.pipeline:3} {parallel.virtual_pipeline or '':>3}{config.data_parallel:4}"
        f"{config.trainer.micro_batch_size:3} {recompute:9} {detection:9}"
        f"|{params:7.1f}{grads:6.1f}{optim:6.1f}{acts:6.1f}{memory.working / GIB:5.1f}"
        f"{(memory.deltas + memory.runtime) / GIB:5.1f}{memory.total / GIB:6.1f}"
        f"|{seconds:7.1f}{tokens_per_second(config, seconds):7.0f}{mfu(config, cluster, seconds):5.0%}"
    )


def _saving(plan: Plan, cluster: Cluster) -> str:
    seconds, size = save_time(plan.config, cluster), checkpoint_bytes(plan.config) / GIB
    return (
        f"A checkpoint of it has {size:.1f} GiB; saving takes up to {_node_host_gib(plan, cluster):.1f} GiB of a "
        f"node's memory and {seconds.written:.0f} s, of which training waits {seconds.waited:.1f} s."
    )


def _node_host_gib(plan: Plan, cluster: Cluster) -> float:
    return min(cluster.gpus, cluster.gpus_per_node) * saving_host_bytes(plan.config) / GIB


def _denoises(config: Config) -> bool:
    return objective_of(config).detects


def _floor(plan: Plan) -> float:
    training = flops.of_config(plan.config, plan.config.trainer.recompute, frozen=False)
    detection = flops.of_config(plan.config, plan.detection, frozen=True)
    return flops.floor(training, detection) + own_cost(plan.config) / training.total


def _spelled(value: Any) -> str:
    """As Hydra reads it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
