"""What saves memory or arithmetic, where it can."""

from nemo_cdt.config import FP8, FP8_MULTIPLE, PROFILED_STEP, Config, Precision, Recompute, Trainer
from nemo_cdt.objectives import objectives_of
from nemo_cdt.objectives.cdt.settings import DetectionRecompute, detection_settings
from nemo_cdt.validation.rules import nearest, require


def check_memory(config: Config) -> None:
    trainer, layers, pipeline = config.trainer, config.trainer.offload_activations, config.parallel.pipeline
    require(
        layers < config.model.num_layers,
        f"trainer.offload_activations={layers} must be below model.num_layers={config.model.num_layers}: "
        f"set trainer.offload_activations={config.model.num_layers - 1} or less",
    )
    require(
        layers == 0 or (trainer.recompute is Recompute.none and pipeline == 1),
        f"trainer.offload_activations={layers} needs trainer.recompute=none (here {trainer.recompute}) and "
        f"parallel.pipeline=1 (here {pipeline}), or set trainer.offload_activations=0",
    )
    detection = detection_settings(config.objective).detection_recompute
    full = trainer.recompute is Recompute.full or detection is DetectionRecompute.full
    require(
        trainer.mlp_chunks == 1 or full,
        f"trainer.mlp_chunks={trainer.mlp_chunks} has no effect with trainer.recompute={trainer.recompute}: "
        "set trainer.recompute=full, or trainer.mlp_chunks=1",
    )
    require(
        layers == 0 or detection in (DetectionRecompute.auto, DetectionRecompute.none),
        f"objective.detection_recompute={detection} with trainer.offload_activations={layers}: "
        "set objective.detection_recompute=none",
    )
    require(
        trainer.grad_dtype is Precision.fp32 or trainer.precision is Precision.bf16,
        f"trainer.grad_dtype={trainer.grad_dtype} with trainer.precision={trainer.precision}: "
        "set trainer.grad_dtype=fp32",
    )
    require(
        config.optim.offload <= 1, f"optim.offload={config.optim.offload} is a share: set it to a number from 0 to 1"
    )


def check_fp8(config: Config) -> None:
    trainer, parallel, model = config.trainer, config.parallel, config.model
    fp8, given = trainer.fp8, f"trainer.fp8={trainer.fp8}"
    if fp8 is FP8.none:
        return
    denoises = any(one.detects for one in objectives_of(config))
    require(
        fp8 is FP8.both or denoises,
        f"{given} has no effect with objective.name={config.objective.name}, which detects nothing: "
        "set trainer.fp8=both or none",
    )
    for key, value, wanted in (
        ("trainer.precision", trainer.precision, Precision.bf16),
        ("lora.rank", config.lora.rank, 0),
        ("trainer.offload_activations", trainer.offload_activations, 0),
    ):
        require(value == wanted, f"{given} with {key}={value}: set {key}={wanted}, or trainer.fp8=none")
    other = next((one.settings.name for one in objectives_of(config) if not one.fp8), None)
    require(fp8 is FP8.detection or other is None, f"{given} with objective {other}: set trainer.fp8=none")
    widths = {"model.hidden_size": model.hidden_size, "model.ffn_hidden_size": model.ffn_hidden_size}
    for key, width in (widths | {"all heads' queries": model.query_size, "all groups' keys": model.key_size}).items():
        require(
            width % (FP8_MULTIPLE * parallel.tensor) == 0,
            f"{given} with {key}={width}, which must be a multiple of {FP8_MULTIPLE} * parallel.tensor="
            f"{FP8_MULTIPLE * parallel.tensor}: set trainer.fp8=none",
        )
    split = parallel.context * (parallel.tensor if parallel.sequence else 1) * trainer.mlp_chunks
    positions = config.data.seq_length * trainer.micro_batch_size
    require(
        positions % (FP8_MULTIPLE * split) == 0,
        f"{given} with data.seq_length={config.data.seq_length} * trainer.micro_batch_size="
        f"{trainer.micro_batch_size}, which must be a multiple of {FP8_MULTIPLE} * {split} (what splits the sequence): "
        f"set data.seq_length={nearest(config.data.seq_length, FP8_MULTIPLE * split, model.max_positions)}",
    )


def check_profile(trainer: Trainer) -> None:
    require(
        not trainer.profile or trainer.max_steps >= PROFILED_STEP,
        f"trainer.max_steps={trainer.max_steps} with trainer.profile=true, which traces the {PROFILED_STEP}th step: "
        f"set trainer.max_steps={PROFILED_STEP} or more, or trainer.profile=false",
    )
