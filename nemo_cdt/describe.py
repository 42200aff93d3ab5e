"""A run in a few lines, from its configuration alone: said when it starts, and in its report."""

from nemo_cdt.config import Config, ObjectiveName

NAMES = {ObjectiveName.cdt: "CDT", ObjectiveName.ce: "plain CE"}


def describe(config: Config) -> dict[str, str]:
    """What it is -> its value."""
    data, trainer = config.data, config.trainer
    tokens = trainer.global_batch_size * data.seq_length
    batch = f"{trainer.global_batch_size} sequences of {data.seq_length:,} tokens a step, {tokens:,} in all"
    lr = f"learning rate {config.optim.lr:g}, {config.optim.schedule}"
    return {
        "Objective": NAMES[config.objective.name] + _strength(config),
        "Model": f"{_model(config)}; {_weights(config)}",
        "Data": f"{data.name}{f', {data.path}' if data.path else ''}; {batch}",
        "Steps": f"{trainer.max_steps:,}; Adam, {lr}; seed {trainer.seed}",
        "Layout": _layout(config),
    }


def _strength(config: Config) -> str:
    objective = config.objective
    if objective.name is ObjectiveName.ce:
        return ""
    scale = {
        "gradient": f"shift = gradient · lr · beta, beta {objective.beta:g}, lr {objective.lr}",
        "relative": f"relative shift rho {objective.rho:g}",
        "epsilon": f"shift epsilon {objective.epsilon:g}",
    }[objective.normalization]
    return f": {scale}; threshold per {objective.threshold_scope}"


def _model(config: Config) -> str:
    model = config.model
    heads = f"{model.num_attention_heads} heads in {model.num_query_groups} groups"
    return f"{model.name}: {model.num_layers} layers, width {model.hidden_size}, {heads}"


def _weights(config: Config) -> str:
    return f"from {config.init.hf or config.init.nemo}" if config.init.hf or config.init.nemo else "random weights"


def _layout(config: Config) -> str:
    parallel, trainer = config.parallel, config.trainer
    sizes = {"tensor": parallel.tensor, "pipeline": parallel.pipeline, "context": parallel.context}
    sizes["data"] = config.data_parallel
    split = [f"{name} {size}" for name, size in sizes.items() if size > 1] + ["sequence parallel"] * parallel.sequence
    nodes = f" on {trainer.num_nodes} nodes" * (trainer.num_nodes > 1)
    return ", ".join([f"{trainer.world_size} device{'s' * (trainer.world_size > 1)}{nodes}", *split, trainer.precision])
