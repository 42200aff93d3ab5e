"""What a run logs in ``metrics.jsonl`` and everywhere else: each figure's name, unit and meaning, in one place.

An objective's own are in its METRICS and PASSES; here are those of every run, which front ends log.
"""

from nemo_cdt.objectives.base import Metric, Objective
from nemo_cdt.objectives.registry import loadable

STEP = (
    Metric(
        name="loss",
        title="training loss",
        unit="nats",
        explanation="the cross-entropy of a labelled token, mean over those of the global batch",
        best="lowest",
    ),
    Metric(
        name="grad_norm",
        title="gradient norm",
        explanation="the length of the gradient of all trained weights, before optim.clip_grad shortens it",
    ),
    Metric(name="lr", title="learning rate", explanation="of the optimizer, in this step"),
    Metric(name="step_time", title="step time, s", unit="s", explanation="of the whole step, on rank 0", best="lowest"),
    Metric(
        name="training_time",
        title="training pass and optimizer, s",
        unit="s",
        explanation="step_time less the passes before training's; where there are some",
    ),
    Metric(
        name="tokens_per_second",
        title="tokens per second",
        unit="tokens/s",
        explanation="tokens of the global batch by step_time; padding is none, and a token of two passes counts once",
        best="highest",
    ),
    Metric(
        name="padding_fraction",
        title="padding, fraction",
        unit="fraction",
        explanation="the share of positions that hold no token; data.pack=true fills them",
    ),
    Metric(
        name="peak_memory_gib",
        title="peak memory, GiB",
        unit="GiB",
        explanation="the most that torch has allocated on rank 0's GPU since the run began",
    ),
)
VALIDATION = (
    Metric(
        name="val_loss",
        title="validation loss",
        unit="nats",
        explanation="loss on the validation documents, whose input is never denoised",
        best="lowest",
    ),
    Metric(
        name="val_perplexity",
        title="validation perplexity",
        explanation="exp of the mean cross-entropy of all labelled validation tokens",
        best="lowest",
    ),
    Metric(
        name="val_longppl",
        title="LongPPL in validation",
        explanation="the same of key tokens alone, which longppl.evaluator needs its long context to predict",
        best="lowest",
    ),
    Metric(
        name="val_accuracy",
        title="right answers in validation, fraction",
        unit="fraction",
        explanation="the share of documents all of whose labelled tokens are the likeliest; data=multihop alone",
        best="highest",
    ),
    *(
        Metric(
            name=f"val_{among}_{kind}",
            title=f"{kind} tokens among {words}, fraction",
            unit="fraction",
            explanation=f"the share of {kind} facts' tokens among {said}; data=multihop alone",
        )
        for kind in ("supporting", "interference")
        for among, words, said in (
            ("critical", "the critical", "the critical ones, which detection does not call noise"),
            ("base", "all", "all tokens"),
        )
    ),
)
END = (
    Metric(
        name="truncated_documents",
        title="documents that were cut",
        unit="documents",
        explanation="how often data.truncate=true cut one; once, when training ends",
    ),
    Metric(
        name="truncated_tokens",
        title="tokens that were cut off",
        unit="tokens",
        explanation="what it cut off, in all; once, when training ends",
    ),
)
SAVE = Metric(
    name="save_time",
    title="waiting for a checkpoint, s",
    unit="s",
    explanation="how long training waited for a checkpoint, in a row of its own when that is whole",
    best="lowest",
)
COMMON = (*STEP, *VALIDATION, SAVE, *END)


def figures(kind: type[Objective] | Objective) -> dict[str, Metric]:
    """All that a run of an objective may log, by name: its loss, what is the objective's own, and the rest."""
    own = (*kind.METRICS, *(each.metric_of_time for each in kind.PASSES))
    return {metric.name: metric for metric in (STEP[0], *own, *COMMON)}


def glossary() -> dict[str, Metric]:
    """All that any run may log, by name."""
    return {name: metric for kind in loadable().values() for name, metric in figures(kind).items()}
