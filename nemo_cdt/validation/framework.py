"""What Megatron-Bridge's front end has not, and which framework a run's checkpoints are of."""

from pathlib import Path

from nemo_cdt.config import FP8, Config, DataName, Framework
from nemo_cdt.frameworks import CHECKPOINTS, framework_of, framework_of_checkpoints
from nemo_cdt.objectives import objectives_of
from nemo_cdt.validation.rules import require


def check_framework(config: Config) -> None:
    """Raise ValueError for what ``framework=bridge`` cannot do."""
    if framework_of(config) is not Framework.bridge:
        return
    chosen = "framework=bridge" if config.framework is Framework.bridge else "framework=auto, which is bridge here"
    for key, value, only in (
        ("lora.rank", config.lora.rank, 0),
        ("init.nemo", config.init.nemo, None),
        ("longppl.evaluator", config.longppl.evaluator, None),
        ("trainer.fp8", config.trainer.fp8, FP8.none),
        ("trainer.profile", config.trainer.profile, False),
        ("trainer.offload_activations", config.trainer.offload_activations, 0),
        ("optim.offload", config.optim.offload, 0),
        ("study.samples", config.study.samples, 0),
    ):
        require(
            value == only,
            f"{key}={_spelled(value)} with {chosen}, whose front end has it not: set {key}={_spelled(only)}, or "
            "framework=nemo",
        )
    others = [name for name in config.logger.chosen if name != "tensorboard"]
    require(
        not others,
        f"logger=[{','.join(others)}] with {chosen}, whose front end has TensorBoard alone: set logger=tensorboard, or "
        "framework=nemo",
    )
    require(
        config.data.name is not DataName.pretrain,
        f"data.name=pretrain with {chosen}, whose front end has not NeMo's data module: set data=prepared",
    )
    unknown = [one.settings.name for one in objectives_of(config) if one.preferences]
    require(
        not unknown, f"objective {', '.join(unknown)} with {chosen}, where it has not been tried: set framework=nemo"
    )


def check_checkpoints(config: Config) -> None:
    """Raise ValueError where the run in OUTPUT was trained by the other framework."""
    before, now = framework_of_checkpoints(Path(config.output, "checkpoints")), framework_of(config)
    require(
        before in (None, now),
        f"output={config.output} has checkpoints of framework={before} ({before and CHECKPOINTS[before]}), and this is "
        f"framework={now}: resume it with framework={before}, or begin another run with init.hf of its exported model",
    )


def _spelled(value: object) -> str:
    """As it is typed on a command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
