"""Bytes of the activations of one GPU: what each pass keeps, and what comes and goes while it runs.

Per layer and token (Transformer Engine's layers, SwiGLU, flash attention; h = hidden size, Llama-3.1-8B's shape)
training keeps 34 h bytes until backward, detection 23 h, since what only a weight gradient needs is not kept; with the
MLPs recomputed 11 h and 9 h; with everything recomputed 2 h. QK norm keeps queries and keys twice.
"""

from nemo_cdt.config import Config, ContextComm, Precision, Recompute
from nemo_cdt.cost import flops
from nemo_cdt.objectives import objective_of

CHUNK = 2**30
"""fp32 logits of one chunk of rows: :mod:`nemo_cdt.megatron.cross_entropy`."""
BYTES = {Precision.bf16: 2, Precision.fp32: 4}
MLP = {"norm2", "fc1", "fc2"}
FOR_WEIGHT_GRADIENTS = {"norm1", "norm2", "fc2"}
KEPT = {
    Recompute.none: {"input", "norm1", "qkv", "attention", "residual", "dropout", *MLP},
    Recompute.selective: {"input", "norm1", "qkv", "attention", "residual", "dropout"},
    Recompute.full: {"input"},
}


def local_tokens(config: Config) -> int:
    """Positions of one micro-batch on one context-parallel rank."""
    return config.trainer.micro_batch_size * config.data.seq_length // config.parallel.context


def kept(config: Config, recompute: Recompute = Recompute.none, *, frozen: bool = False) -> float:
    """Of one layer and micro-batch, from forward to backward."""
    each = _sizes(config)
    return sum(each[name] for name in KEPT[recompute] - (FOR_WEIGHT_GRADIENTS if frozen else set()))


def layers_alive(config: Config, stage: int) -> float:
    """Layers whose activations are there at once: a stage's layers for each micro-batch in flight."""
    parallel, batches = config.parallel, config.num_microbatches
    layers, virtual = config.model.num_layers / parallel.pipeline, parallel.virtual_pipeline or 1
    if offloaded := config.trainer.offload_activations:
        return layers - offloaded + 1  # one is on its way
    if virtual == 1:
        return min(parallel.pipeline - stage, batches) * layers
    chunks = 2 * (parallel.pipeline - stage - 1) + (virtual - 1) * parallel.pipeline + 1
    return min(chunks, batches * virtual) * layers / virtual


def hidden(config: Config) -> float:
    """One residual stream, as the embedding or a layer puts it out."""
    return _sizes(config)["input"]


def deltas(config: Config, *, frozen: bool) -> float:
    """A micro-batch's shift; in a pipeline the whole batch's."""
    if not objective_of(config).detects:
        return 0.0
    if config.parallel.pipeline == 1:
        return 0.0 if frozen else hidden(config)
    return config.num_microbatches * hidden(config)


def head(config: Config, *, frozen: bool) -> float:
    """Of the final norm and the head: its rows, whole on each tensor-parallel rank, and one chunk of logits at a time.

    Forward holds a chunk's fp32 logits twice, backward once with their bf16 gradient; the weight's is summed in fp32.
    """
    weights = flops.head_weights(config.model) / config.parallel.tensor
    tokens, width = local_tokens(config), BYTES[config.trainer.precision]
    chunk = min(CHUNK, 4 * weights / config.model.hidden_size * tokens)
    backward = 4 * weights + max(1.5 * chunk, 0.5 * chunk + width * weights)
    rows = 2 * tokens * width * config.model.hidden_size
    return _sizes(config)["norm1"] + rows + max(2 * chunk, 0.0 if frozen else backward)


def layer(config: Config, recompute: Recompute, *, frozen: bool) -> float:
    """Of the layer whose backward runs: what it recomputes, with its MLP's gradients or attention's exchange.

    With sequence parallelism an input and a gradient of each linear are gathered whole.
    """
    each, chunks = _sizes(config), config.trainer.mlp_chunks if recompute is Recompute.full else 1
    recomputed = kept(config, frozen=frozen) - kept(config, recompute, frozen=frozen)
    mlp = sum(each[name] for name in MLP - (FOR_WEIGHT_GRADIENTS if frozen else set()))
    gathered = 2 * config.parallel.tensor * each["norm1"] if config.parallel.sequence else 0.0
    gradients = each["fc1"] + each["fc2"] + each["norm2"] + gathered
    streams = each["residual"] * (2 if chunks > 1 else 1)  # a gradient, and the chunks' outputs
    return recomputed - mlp + max((mlp + gradients) / chunks, _exchange(config, each)) + streams


def _exchange(config: Config, each: dict[str, float]) -> float:
    """Of context-parallel attention: p2p keeps each step's output, keys and values until the end."""
    context, comm = config.parallel.context, config.parallel.context_comm
    if context == 1:
        return 0.0
    keys_and_values = each["attention"] * 2 * config.model.key_size / config.model.query_size
    if comm is ContextComm.p2p:
        return context * (each["attention"] + keys_and_values) + 2 * each["attention"]
    if comm is ContextComm.all_gather:
        return 2 * context * keys_and_values
    return 2 * each["attention"] + keys_and_values


def _sizes(config: Config) -> dict[str, float]:
    """Each activation of a layer, of one micro-batch."""
    model, tensor, width = config.model, config.parallel.tensor, BYTES[config.trainer.precision]
    tokens = local_tokens(config)
    normed = 2 if model.qk_norm else 1  # queries and keys: before their norm, and after
    whole = tokens * model.hidden_size / (tensor if config.parallel.sequence else 1)  # else tensor does not split it
    stream = (4 if model.fp32_residual else width) * whole
    return {
        "input": stream,
        "norm1": width * whole,
        "qkv": width * tokens * (normed * (model.query_size + model.key_size) + model.key_size) / tensor,
        "attention": width * tokens * model.query_size / tensor,
        "residual": stream,
        "dropout": 2 * whole if model.hidden_dropout else 0.0,  # two masks, of a byte each
        "norm2": width * whole,
        "fc1": width * tokens * 2 * model.ffn_hidden_size / tensor,
        "fc2": width * tokens * model.ffn_hidden_size / tensor,
    }
