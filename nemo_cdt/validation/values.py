"""Values that no layout and no data could make right."""

import math
from functools import partial

from nemo_cdt.config import (
    Config,
    DataName,
    Family,
    LongPPL,
    Model,
    RopeScaling,
    RopeType,
    Schedule,
    walk,
)
from nemo_cdt.objectives import Objective, Settings, baseline_of, loadable, objectives_of
from nemo_cdt.validation.rules import listed, nearest, refuse, require, require_all, yaml

MAY_BE_ZERO = {
    "data.validation_samples",
    "data.num_workers",
    "data.emojis",
    "data.needles",
    "longppl.alpha",
    "model.attention_dropout",
    "model.hidden_dropout",
    "lora.rank",
    "lora.dropout",
    "trainer.seed",
    "trainer.val_interval",
    "trainer.checkpoint_interval",
    "trainer.checkpoints_kept",
    "trainer.offload_activations",
    "optim.offload",
    "optim.min_lr",
    "optim.warmup_steps",
    "optim.weight_decay",
    "optim.clip_grad",
    "optim.beta1",
    "optim.beta2",
    "launcher.max_restarts",
    "launcher.requeues",
    "study.samples",
}
LARGEST = 3.4028234663852886e38
"""Of fp32, in which a step is computed."""
MAY_BE_NEGATIVE = {"longppl.beta"}
FAMILIES = {  # what Hugging Face has in each: qkv_bias, qk_norm, and whether a sliding window is possible
    Family.llama: (False, False, False),
    Family.mistral: (False, False, True),
    Family.qwen2: (True, False, True),
    Family.qwen3: (False, True, True),
}
OF_ROPE_TYPE = {  # of model.rope_scaling, what the other type has no use for
    RopeType.llama3: ("low_freq_factor", "high_freq_factor"),
    RopeType.yarn: ("beta_fast", "beta_slow", "attention_factor"),
}


def validate_values(config: Config) -> None:
    """Raise ValueError for values that no layout and no data could make right; part of :func:`validate`."""
    _check_signs(config)  # the others compute with what it lets pass
    checks = (_check_model, _check_objective, _check_longppl, _check_optim)
    require_all(*(partial(check, config) for check in checks))


def _check_signs(config: Config) -> None:
    wrong: list[str] = []
    zeros, negatives, values = set(MAY_BE_ZERO), set(MAY_BE_NEGATIVE), list(walk(config))
    beside = baseline_of(config)
    if beside is not None:
        values += walk(beside, "compare_to.")
    for section, settings in (("objective.", config.objective), ("compare_to.", beside or Settings())):
        zeros |= {section + key for key in settings.MAY_BE_ZERO}
        negatives |= {section + key for key in settings.MAY_BE_NEGATIVE}
    for name, value in values:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            zero = name in zeros
            if not (math.isfinite(value) and (value > 0 or (zero and value == 0) or name in negatives)):
                wrong.append(f"{name}={value}: set it to {'0 or more' if zero else 'a number above 0'}")
            elif isinstance(value, float) and abs(value) > LARGEST:
                wrong.append(f"{name}={value}: fp32 ends at {LARGEST:.2g}: set it lower")
    refuse(wrong)


def _check_model(config: Config) -> None:
    model = config.model
    heads, groups = model.num_attention_heads, model.num_query_groups
    require(
        model.head_dim is not None or model.hidden_size % (2 * heads) == 0,
        f"model.hidden_size={model.hidden_size} must be a multiple of 2 * model.num_attention_heads={heads}: "
        f"set model.hidden_size={nearest(model.hidden_size, 2 * heads)}, or model.head_dim",
    )
    require(
        model.head_dim is None or model.head_dim % 2 == 0,
        f"model.head_dim={model.head_dim} must be even: set model.head_dim={nearest(model.head_dim or 0, 2)}",
    )
    require(
        heads % groups == 0,
        f"model.num_query_groups={groups} must divide model.num_attention_heads={heads}: "
        f"set model.num_query_groups to {listed(heads)}",
    )
    for name in ("attention_dropout", "hidden_dropout"):
        require(getattr(model, name) < 1, f"model.{name}={getattr(model, name)}: set it below 1")
    _check_family(model)
    _check_rope(model.rope_scaling)


def _check_family(model: Model) -> None:
    bias, norm, window = FAMILIES[model.family]
    for key, has in (("qkv_bias", bias), ("qk_norm", norm)):
        require(
            getattr(model, key) == has,
            f"model.{key}={yaml(not has)} with model.family={model.family}, which at Hugging Face has "
            f"{'it' if has else 'none'}: set model.{key}={yaml(has)}, or another model.family",
        )
    require(
        window or model.sliding_window is None,
        f"model.sliding_window={model.sliding_window} with model.family={model.family}, which at Hugging Face "
        "has none: set model.sliding_window=null, or model.family=mistral",
    )


def _check_rope(scaling: RopeScaling) -> None:
    default = RopeScaling()
    for kind, keys in OF_ROPE_TYPE.items():
        for key in keys:
            require(
                kind is scaling.rope_type or getattr(scaling, key) == getattr(default, key),
                f"model.rope_scaling.{key}={getattr(scaling, key)} has no effect with model.rope_scaling.rope_type="
                f"{scaling.rope_type}: remove it, or set model.rope_scaling.rope_type={kind}",
            )
    for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
        require(
            getattr(scaling, low) < getattr(scaling, high),
            f"model.rope_scaling.{low}={getattr(scaling, low)} must be below model.rope_scaling.{high}="
            f"{getattr(scaling, high)}",
        )


def _check_objective(config: Config) -> None:
    mine, *beside = objectives_of(config)
    name = config.objective.name
    for other in beside:
        require(
            other.settings.name != name,
            f"compare_to={name} is objective.name itself: set compare_to=null",
        )
        require(
            any(getattr(type(mine), has) != getattr(type(other), has) for has in ("start", "wrap", "METRICS")),
            f"compare_to={other.settings.name} trains what objective.name={name} does: sft is ce on data "
            "whose prompts are masked, set compare_to=null",
        )
    for key, objective in zip(("objective.name", "compare_to"), [mine, *beside], strict=False):
        _check_preferences(config, key, objective)
        try:
            objective.check(config)
        except ValueError as error:  # it may be somebody else's, whose refusal is one line too
            raise ValueError(str(error)) from error


def _check_preferences(config: Config, key: str, objective: Objective) -> None:
    data = config.data
    others = "|".join(sorted(name for name, kind in loadable().items() if kind.preferences))
    require(
        objective.preferences == (data.name is DataName.preferences),
        f"{key}={objective.settings.name} with data.name={data.name}: {others}, and nothing else, trains on "
        f"preferences, set {'data=preferences' if objective.preferences else f'objective={others}'} compare_to=null",
    )
    if data.name is DataName.preferences:
        for name, value, only in (
            ("pack", data.pack, "false"),
            ("document_length", data.document_length, "null"),
            ("truncate", data.truncate, "false"),
        ):
            require(
                not value,
                f"data.{name}={value} with data=preferences, whose rows hold whole answers: set data.{name}={only}",
            )


def _check_longppl(config: Config) -> None:
    how = config.longppl
    if how.evaluator is None:
        changed = [f"longppl.{k}={v}" for k, v in walk(how) if v != getattr(LongPPL(), k)]
        require(not changed, f"{' '.join(changed)} has no effect without an evaluator: set longppl.evaluator=DIR")
        return
    require(
        config.trainer.val_interval > 0,
        f"longppl.evaluator={how.evaluator} has no effect with trainer.val_interval=0: set trainer.val_interval",
    )
    longest = (config.data.document_length or config.data.seq_length) + 1
    require(
        how.context < longest,
        f"longppl.context={how.context}, but documents have at most {longest} tokens, so that none is key: set "
        f"longppl.context={longest // 2} or less, or data.seq_length",
    )


def _check_optim(config: Config) -> None:
    optim, steps = config.optim, config.trainer.max_steps
    require(
        optim.schedule is Schedule.constant or optim.min_lr <= optim.lr,
        f"optim.min_lr={optim.min_lr} is above optim.lr={optim.lr}: set optim.min_lr={optim.lr} or less",
    )
    require(
        optim.warmup_steps < steps,
        f"optim.warmup_steps={optim.warmup_steps} must be below trainer.max_steps={steps}: "
        f"set optim.warmup_steps={steps - 1} or less",
    )
    for name, beta in (("beta1", optim.beta1), ("beta2", optim.beta2)):
        require(beta < 1, f"optim.{name}={beta}: set it below 1")
