"""A run in a few lines, from its configuration alone: said when it starts, and in its report."""

from nemo_cdt.config import Config, Lora, LoraTarget, Model
from nemo_cdt.objectives import objective_of


def describe(config: Config) -> dict[str, str]:
    """What it is -> its value."""
    data, trainer, objective = config.data, config.trainer, objective_of(config)
    tokens = trainer.global_batch_size * data.seq_length
    batch = f"{trainer.global_batch_size} sequences of {data.seq_length:,} tokens a step, {tokens:,} in all"
    lr = f"learning rate {config.optim.lr:g}, {config.optim.schedule}"
    return {
        "Objective": "; ".join([objective.label, *objective.describe()]),
        "Model": f"{_model(config)}; {_weights(config)}",
        **({"LoRA": _lora(config.lora, config.model)} if config.lora.rank else {}),
        "Data": f"{data.name}{f', {data.path}' if data.path else ''}; {batch}",
        "Steps": f"{trainer.max_steps:,}; Adam, {lr}; seed {trainer.seed}{_unvalidated(config)}",
        "Layout": _layout(config),
    }


def _unvalidated(config: Config) -> str:
    interval, steps = config.trainer.val_interval, config.trainer.max_steps
    return f"; no validation: trainer.val_interval={interval} is above the steps" if interval > steps else ""


def _model(config: Config) -> str:
    model = config.model
    heads = f"{model.num_attention_heads} heads in {model.num_query_groups} groups"
    window = f", sliding window {model.sliding_window:,}" if model.sliding_window else ""
    return f"{model.name}: {model.num_layers} layers, width {model.hidden_size}, {heads}{window}; {_rope(model)}"


def _rope(model: Model) -> str:
    scaling = f" with {model.rope.rope_type} scaling by {model.rope.factor:g}" if model.rope else ""
    return f"RoPE base {model.rotary_base:g}{scaling}"


def _weights(config: Config) -> str:
    return f"from {config.init.hf or config.init.nemo}" if config.init.hf or config.init.nemo else "random weights"


def _lora(lora: Lora, model: Model) -> str:
    dropout = f", dropout {lora.dropout:g}" if lora.dropout else ""
    parameters = f"{trainable_parameters(lora, model):,} trainable parameters"
    return f"rank {lora.rank}, alpha {lora.alpha}{dropout} on {', '.join(lora.targets)}: {parameters}"


def trainable_parameters(lora: Lora, model: Model) -> int:
    """Of all adapters: A [rank, in] and B [out, rank] for each target of each layer."""
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    sizes = {
        LoraTarget.linear_qkv: hidden + model.query_size + 2 * model.key_size,
        LoraTarget.linear_proj: model.query_size + hidden,
        LoraTarget.linear_fc1: hidden + 2 * ffn,
        LoraTarget.linear_fc2: ffn + hidden,
    }
    return model.num_layers * lora.rank * sum(sizes[target] for target in lora.targets)


def _layout(config: Config) -> str:
    parallel, trainer = config.parallel, config.trainer
    sizes = {"tensor": parallel.tensor, "pipeline": parallel.pipeline, "context": parallel.context}
    sizes["data"] = config.data_parallel
    split = [f"{name} {size}" for name, size in sizes.items() if size > 1] + ["sequence parallel"] * parallel.sequence
    nodes = f" on {trainer.num_nodes} nodes" * (trainer.num_nodes > 1)
    return ", ".join([f"{trainer.world_size} device{'s' * (trainer.world_size > 1)}{nodes}", *split, trainer.precision])
