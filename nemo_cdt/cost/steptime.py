"""Seconds of a training step, estimated.

What is counted: matrix products and attention at the cluster's fractions of its peak; memory-bound kernels, which write
and read each activation of a layer once forward and twice backward; the head's passes over its logits; collectives of
tensor parallelism, none of them hidden; context-parallel exchange, of which p2p hides what attention covers; the
pipeline's bubble; the reduction of gradients and the gathering of parameters, hidden by no computation; Adam, bound by
memory, and for its offloaded share by the link to the host. Not counted: reading data, logging, launch gaps. Of a
save: copies to the host and bytes to storage, apart from steps.
"""

from dataclasses import dataclass

from nemo_cdt.config import Config, ContextComm, Precision, Recompute, Resharding
from nemo_cdt.cost import activations, flops, memory
from nemo_cdt.cost.cluster import Cluster
from nemo_cdt.objectives import objective_of

P2P_HALF_LENGTH = 3200
"""Tokens a GPU at which ring attention's short kernels would run at half speed: 0.72 of it at 8,192 tokens a GPU, as
MagiAttention's benchmark has it (421 of 601 TFLOP/s forward, 432 of 582 backward, 8 H100s)."""
LOGIT_TRAFFIC = {False: 30, True: 26}
"""Bytes read and written for each logit, training and frozen: the copies that the head makes, forward and backward."""
ADAM_TRAFFIC = 32
"""Bytes read and written for each parameter: gradient and its norm, fp32 parameter, two moments, bf16 parameter."""


@dataclass(kw_only=True, slots=True)
class StepTime:
    """Seconds of one step, by part."""

    windows: float  # forward passes of the objective's own
    detection: float
    training: float
    bubble: float
    reduction: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.windows + self.detection + self.training + self.bubble + self.reduction + self.optimizer


def step_time(config: Config, cluster: Cluster, detection: Recompute) -> StepTime:
    """An estimate for the step whose detection recomputes ``detection``."""
    parallel, batches = config.parallel, config.num_microbatches
    detecting = 0.0
    if objective_of(config).detects:
        detecting = _micro_batch(config, cluster, detection, frozen=True)
    training = _micro_batch(config, cluster, config.trainer.recompute, frozen=False)
    weighing = _own_passes(config, cluster)
    return StepTime(
        windows=batches * weighing,
        detection=batches * detecting,
        training=batches * training,
        bubble=(parallel.pipeline - 1) / (parallel.virtual_pipeline or 1) * (weighing + detecting + training),
        reduction=_reduction(config, cluster),
        optimizer=_adam(config, cluster),
    )


@dataclass(kw_only=True, slots=True)
class SaveTime:
    """Seconds of one checkpoint: until its files are written, and how long of it training waits."""

    written: float
    waited: float


def save_time(config: Config, cluster: Cluster) -> SaveTime:
    """Copies to the host, then bytes over the bandwidth of storage; no barrier, plan or checksum."""
    nodes = -(-cluster.gpus // cluster.gpus_per_node)
    moved = memory.checkpoint_bytes(config) / config.trainer.world_size
    if config.trainer.checkpoint_resharding is Resharding.full:  # every rank gets all of its stage's
        moved = 12 * max(memory.stage_parameters(config, stage) for stage in (0, config.parallel.pipeline - 1))
    copied = moved / (cluster.host_gb_per_s * 1e9)
    written = copied + memory.checkpoint_bytes(config) / (nodes * cluster.storage_gb_per_s * 1e9)
    return SaveTime(written=written, waited=copied if config.trainer.async_save else written)


ATTENTION_SLOWER = {"forward": 1.16, "backward": 1.37}
"""How much longer attention's kernels take for as many FLOPs than matrix products, by the fractions of conf/cluster."""


def document_cost(config: Config, positions: int) -> float:
    """What a document of a packed row costs in a step, in any unit: of model and objective alone, not of the layout."""
    passes = [False, True] if objective_of(config).detects else [False]
    cost = own_cost(config)
    for frozen in passes:
        done = flops.work(config.model, positions, config.trainer.recompute, frozen=frozen, head_recompute=True)
        cost += done.linears + done.head
        cost += ATTENTION_SLOWER["forward"] * done.attention_forward
        cost += ATTENTION_SLOWER["backward"] * done.attention_backward
    return positions * cost


def tokens_per_second(config: Config, seconds: float) -> float:
    """Of one GPU."""
    return config.trainer.global_batch_size * config.data.seq_length / seconds / config.trainer.world_size


def mfu(config: Config, cluster: Cluster, seconds: float) -> float:
    """The share of the GPU's peak that goes into both passes' arithmetic, with nothing counted twice."""
    once = flops.useful(config.model, flops.attended(config))
    if objective_of(config).detects:
        once += flops.useful(config.model, flops.attended(config), frozen=True)
    once += own_cost(config)
    return once * tokens_per_second(config, seconds) / (cluster.peak_tflops * 1e12)


def _micro_batch(config: Config, cluster: Cluster, recompute: Recompute, *, frozen: bool) -> float:
    """One forward and backward of one micro-batch on the last stage, which has the head."""
    done = flops.of_config(config, recompute, frozen=frozen)
    tokens, stages = activations.local_tokens(config), config.parallel.pipeline
    share = tokens / config.parallel.tensor
    gemms = share * (done.linears / stages + done.head) / cluster.gemm_fraction
    forward = share * done.attention_forward / stages / cluster.attention_forward_fraction
    backward = share * done.attention_backward / stages / cluster.attention_backward_fraction
    attention = (forward + backward) / (cluster.peak_tflops * 1e12) / _ring_efficiency(config)
    return (
        gemms / (cluster.peak_tflops * 1e12)
        + attention
        + _memory_bound(config, cluster, recompute, frozen)
        + _tensor_exchange(config, cluster, recompute)
        + _context_exchange(config, cluster, recompute, attention)
        + _stage_exchange(config, cluster)
    )


def own_cost(config: Config) -> float:
    """FLOPs of one token in forward passes of the objective's own."""
    done = objective_of(config).cost(config)
    return done.total if done else 0.0


def _own_passes(config: Config, cluster: Cluster) -> float:
    """Of one micro-batch: arithmetic alone, attention at the full sequence's rate."""
    done, parallel = objective_of(config).cost(config), config.parallel
    if done is None:
        return 0.0
    share = activations.local_tokens(config) / parallel.tensor
    products = (done.linears / parallel.pipeline + done.head) / cluster.gemm_fraction
    attention = done.attention_forward / parallel.pipeline / cluster.attention_forward_fraction
    return share * (products + attention) / (cluster.peak_tflops * 1e12)


def _ring_efficiency(config: Config) -> float:
    if config.parallel.context == 1 or config.parallel.context_comm is not ContextComm.p2p:
        return 1.0
    tokens = flops.attended(config) / config.parallel.context
    return tokens / (tokens + P2P_HALF_LENGTH)


def _forwards(recompute: Recompute) -> int:
    return 2 if recompute is Recompute.full else 1


def _memory_bound(config: Config, cluster: Cluster, recompute: Recompute, frozen: bool) -> float:
    layers = config.model.num_layers / config.parallel.pipeline
    moved = 2 * activations.kept(config) * layers * (_forwards(recompute) + 2)
    logits = activations.local_tokens(config) * flops.vocabulary(config.model) / config.parallel.tensor
    return (moved + LOGIT_TRAFFIC[frozen] * logits) / (cluster.memory_gb_per_s * 1e9)


def _tensor_exchange(config: Config, cluster: Cluster, recompute: Recompute) -> float:
    """Two gathers and two scatters (or two all-reduces) a layer, forward and backward."""
    tensor = config.parallel.tensor
    layers = config.model.num_layers / config.parallel.pipeline
    moved = _hidden_bytes(config) * (tensor - 1) / tensor
    return 4 * (_forwards(recompute) + 1) * layers * moved / _bandwidth(cluster, tensor, 1)


def _context_exchange(config: Config, cluster: Cluster, recompute: Recompute, attention: float) -> float:
    """Keys and values travel forward, and with their gradients backward. a2a moves queries and outputs too."""
    parallel, model = config.parallel, config.model
    context, layers = parallel.context, model.num_layers / parallel.pipeline
    if context == 1:
        return 0.0
    width = activations.BYTES[config.trainer.precision]
    kv = activations.local_tokens(config) * 2 * width * model.key_size / parallel.tensor
    passes = (_forwards(recompute) + 2) * layers
    if parallel.context_comm is ContextComm.a2a:
        heads = 2 * activations.local_tokens(config) * width * model.query_size / parallel.tensor + kv
        return passes * heads * (context - 1) / context / _bandwidth(cluster, context, parallel.tensor)
    seconds = passes * kv * (context - 1) / _bandwidth(cluster, context, parallel.tensor, neighbours=True)
    return max(0.0, seconds - attention) if parallel.context_comm is ContextComm.p2p else seconds


def _stage_exchange(config: Config, cluster: Cluster) -> float:
    """Hidden states to the next stage, and their gradients back, once for each model chunk."""
    parallel = config.parallel
    if parallel.pipeline == 1:
        return 0.0
    split = parallel.tensor if parallel.sequence else 1
    between = _bandwidth(cluster, 2, cluster.gpus // parallel.pipeline, neighbours=True)
    return 2 * (parallel.virtual_pipeline or 1) * _hidden_bytes(config) / split / between


def _hidden_bytes(config: Config) -> float:
    return activations.local_tokens(config) * config.model.hidden_size * activations.BYTES[config.trainer.precision]


def _reduction(config: Config, cluster: Cluster) -> float:
    shards = memory.optimizer_shards(config)
    count = max(memory.stage_parameters(config, stage) for stage in (0, config.parallel.pipeline - 1))
    width = activations.BYTES[config.trainer.grad_dtype] + activations.BYTES[config.trainer.precision]
    return count * width * (shards - 1) / shards / _bandwidth(cluster, shards, config.parallel.tensor)


def _adam(config: Config, cluster: Cluster) -> float:
    count = max(memory.stage_parameters(config, stage) for stage in (0, config.parallel.pipeline - 1))
    share, offload = count / memory.optimizer_shards(config), config.optim.offload
    moved = activations.BYTES[config.trainer.grad_dtype] + (2 if config.trainer.precision is Precision.bf16 else 4)
    on_host = offload * (moved + ADAM_TRAFFIC) / (cluster.host_gb_per_s * 1e9)
    return share * ((1 - offload) * ADAM_TRAFFIC / (cluster.memory_gb_per_s * 1e9) + on_host)


def _bandwidth(cluster: Cluster, size: int, stride: int, *, neighbours: bool = False) -> float:
    """Bytes a second of a group of ``size`` ranks, ``stride`` apart (tensor, then context, data and pipeline).

    A group within a node has the node's links. Of one that leaves it every member's network card takes its part, unless
    each rank talks to its neighbours alone.
    """
    together = max(1, cluster.gpus_per_node // stride)
    if size <= together:
        return cluster.node_gb_per_s * 1e9
    cards = 1 if neighbours else together
    return min(cluster.node_gb_per_s, cards * cluster.network_gb_per_s) * 1e9
