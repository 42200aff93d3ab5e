"""Bytes of one GPU at the peak of a step, by part, in the steady state: Adam's moments are there.

Every token is taken to be labelled. A point is the head's turn or a layer's, on the stages that need most.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from nemo_cdt.config import Config, Parallel, Precision, Recompute, Resharding
from nemo_cdt.cost import activations, flops
from nemo_cdt.cost.activations import BYTES
from nemo_cdt.objectives import objective_of
from nemo_cdt.objectives.cdt.settings import DetectionRecompute, detection_settings

GIB = 2**30
CONTEXT = 1.5 * GIB
"""CUDA's context and NCCL's buffers, which torch does not count. Assumed."""
FRAGMENTATION = 0.03
"""Of what torch has allocated, lost between its blocks. Assumed."""

COPIES = 2
"""Of what a rank writes, at most: one to write from, and what changes meanwhile of the pages that processes share."""
BUCKET = 40_000_000
"""Parameters that Megatron reduces and gathers at once where it overlaps."""


@dataclass(kw_only=True, slots=True)
class Memory:
    """Bytes of one GPU, by part. ``head`` and ``layer`` take turns, so the larger counts."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float = 0.0
    deltas: float = 0.0
    head: float = 0.0  # the final hidden states, logits of one chunk, their gradients
    layer: float = 0.0  # what the layer whose backward runs holds besides

    @property
    def working(self) -> float:
        return max(self.head, self.layer)

    @property
    def allocated(self) -> float:
        """What ``torch.cuda.max_memory_allocated`` shows."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.deltas + self.working

    @property
    def runtime(self) -> float:
        return CONTEXT + FRAGMENTATION * self.allocated

    @property
    def total(self) -> float:
        return self.allocated + self.runtime

    @property
    def largest(self) -> tuple[str, float]:
        """The name of the largest part, and its bytes."""
        parts = {item.name: getattr(self, item.name) for item in fields(self)}
        return max(parts.items(), key=lambda part: part[1])


def peak(config: Config, detection: Recompute) -> Memory:
    """The highest point of a step whose detection recomputes ``detection``, on the pipeline stage that needs most."""
    points = [_optimizer_step(config, stage) for stage in _ends(config)] + [training_peak(config)]
    if objective_of(config).detects:
        points.append(detection_peak(config, detection))
    return _highest(points)


def training_peak(config: Config) -> Memory:
    """The training pass's highest point."""
    return _highest(_pass(config, config.trainer.recompute, stage, frozen=False) for stage in _ends(config))


def detection_peak(config: Config, recompute: Recompute) -> Memory:
    """Detection's highest point."""
    return _highest(_pass(config, recompute, stage, frozen=True) for stage in _ends(config))


def detection_recompute(config: Config, device_bytes: float) -> tuple[Recompute, str]:
    """The cheapest recomputation of detection that fits, at worst training's own; and why, in one sentence."""
    asked = detection_settings(config.objective).detection_recompute
    if asked is not DetectionRecompute.auto:
        return Recompute(str(asked)), f"detection recomputes {asked}: objective.detection_recompute says so"
    policies = list(Recompute)
    policies = policies[: policies.index(config.trainer.recompute) + 1]
    needs = {policy: detection_peak(config, policy).total for policy in policies}
    chosen = next((policy for policy in policies if needs[policy] <= device_bytes), policies[-1])
    numbers = ", ".join(f"{need / GIB:.1f} with {policy}" for policy, need in needs.items())
    return chosen, f"detection recomputes {chosen}: of {device_bytes / GIB:.1f} GiB it needs about {numbers}"


def stage_parameters(config: Config, stage: int) -> float:
    """Parameters of one GPU of this pipeline stage."""
    model, parallel = config.model, config.parallel
    first, last = stage == 0, stage == parallel.pipeline - 1
    split = flops.attention_weights(model) + flops.biases(model) + flops.mlp_weights(model)
    layer = split / parallel.tensor + flops.norm_weights(model)
    tables = first + last - (first and last and model.tied_embeddings)
    ends = tables * flops.head_weights(model) / parallel.tensor + last * model.hidden_size
    return model.num_layers / parallel.pipeline * layer + ends


OF_ADAM = 12
"""Bytes of a checkpoint for each parameter, beside its weight: an fp32 copy, also of fp32 weights, and two moments."""


def checkpoint_bytes(config: Config, *, optimizer: bool = True) -> float:
    """On disk, of all ranks together: the weights and, with the optimizer, Adam's moments and fp32 parameters."""
    count = stage_parameters(replace(config, parallel=Parallel()), stage=0)
    return count * (BYTES[config.trainer.precision] + optimizer * OF_ADAM)


def saving_host_bytes(config: Config) -> float:
    """Of one rank in its host's memory, at most, while a checkpoint is saved: see ``trainer.checkpoint_resharding``."""
    count = max(stage_parameters(config, stage) for stage in _ends(config))
    shards = optimizer_shards(config)
    weights = checkpoint_bytes(config, optimizer=False) / config.trainer.world_size  # all ranks share the writing
    written = COPIES * (count / shards * OF_ADAM + weights)
    if config.trainer.checkpoint_resharding is Resharding.dp:
        return written
    # Each of fp32 parameters and two moments is received from all, joined, and kept.
    bucket = min(count, BUCKET) if config.parallel.overlap_grad_reduce else count
    return 12 * count + max(8 * bucket + 12 * bucket / shards, written)


def optimizer_shards(config: Config) -> int:
    """Ranks that share one copy of Adam's state."""
    return config.parallel.context * config.data_parallel


def _highest(points: Iterable[Memory]) -> Memory:
    return max(points, key=lambda memory: memory.total)


def _ends(config: Config) -> set[int]:
    """The pipeline stages that need most: the first has most micro-batches in flight, the last the head."""
    return {0, config.parallel.pipeline - 1}


def _static(config: Config, stage: int) -> dict[str, float]:
    """Parameters, their gradients' buffer, and Adam's moments with, beside bf16, the fp32 parameters."""
    count = stage_parameters(config, stage)
    each = 12 if config.trainer.precision is Precision.bf16 else 8
    if config.optim.offload:
        each += _copied_gradient(config)  # Megatron's hybrid optimizer keeps it from step to step
    return {
        "parameters": count * BYTES[config.trainer.precision],
        "gradients": count * BYTES[config.trainer.grad_dtype],
        "optimizer": each * _own_share(config, stage),
    }


def _optimizer_step(config: Config, stage: int) -> Memory:
    copied = 0 if config.optim.offload else _copied_gradient(config)
    return Memory(**_static(config, stage), layer=copied * _own_share(config, stage))


def _own_share(config: Config, stage: int) -> float:
    """Parameters whose Adam runs on this GPU."""
    return stage_parameters(config, stage) / optimizer_shards(config) * (1 - config.optim.offload)


def _copied_gradient(config: Config) -> int:
    """Bytes of a parameter: Adam reads fp32 gradients, and of a bf16 buffer it makes a copy of its share."""
    return 4 if config.trainer.grad_dtype is Precision.bf16 else 0


def _pass(config: Config, recompute: Recompute, stage: int, *, frozen: bool) -> Memory:
    """The highest point of a forward and backward: the head's, or the layer's after it."""
    last = stage == config.parallel.pipeline - 1
    alive = activations.layers_alive(config, stage) * activations.kept(config, recompute, frozen=frozen)
    return Memory(
        **_static(config, stage),
        activations=alive + (activations.hidden(config) if last else 0.0),
        deltas=activations.deltas(config, frozen=frozen) if stage == 0 else 0.0,
        head=activations.head(config, frozen=frozen) if last else 0.0,
        layer=activations.layer(config, recompute, frozen=frozen),
    )
