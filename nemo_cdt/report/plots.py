"""The pictures of a report, each an SVG with the words that explain it."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nemo_cdt.objectives import objective_of
from nemo_cdt.report.run import Run, Series

# Okabe and Ito's colours: told apart with any colour vision; line styles differ besides.
RUN, BASELINE, BEFORE = "#0072B2", "#D55E00", "#009E73"
BEFORE_TRAINING = (BEFORE, "#E69F00", "#CC79A7")
"""Colours of the passes of a step before its training pass, the last of them first."""
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.color": "#e5e7eb",
    "legend.frameon": False,
    "svg.hashsalt": "nemo_cdt",  # without it the same run gives another file each time
}


@dataclass(kw_only=True, slots=True)
class Picture:
    title: str
    caption: str
    source: str  # a data: URI


def pictures(run: Run) -> list[Picture]:
    """Those the run has numbers for, in the order they are read."""
    draw = (_loss, _validation, _answers, _tells_apart, _noise, _threshold, _strength, _time, _throughput)
    with matplotlib.rc_context(STYLE):
        return [picture for picture in (one(run) for one in draw) if picture is not None]


def _loss(run: Run) -> Picture:
    figure, axes = _axes("training loss (cross-entropy, nats)")
    for one, color, line in _runs(run):
        _curve(axes, one.training, "loss", one.label, color, line)
    if "detection_loss" in run.training:
        _curve(axes, run.training, "detection_loss", f"{run.label}, before denoising", BEFORE, ":")
    caption = "Cross-entropy of the tokens trained on; lower is better. Faint: every step. Strong: a moving average."
    if "detection_loss" in run.training:
        caption += (
            " CDT measures its loss on the denoised input, after it has nudged noise embeddings towards a lower loss; "
            "its dotted line is the same batch untouched, and that is the one to compare with plain cross-entropy."
        )
    return _picture(figure, axes, "Training loss", caption)


def _validation(run: Run) -> Picture | None:
    measured = [(one, color, line) for one, color, line in _runs(run) if "val_loss" in (one.validation or {})]
    if not measured:
        return None
    figure, axes = _axes("validation loss (cross-entropy, nats)")
    for one, color, line in measured:
        series = one.validation or {}
        axes.plot(series["step"], series["val_loss"], line, color=color, label=one.label, marker="o", markersize=3)
    caption = (
        "Loss on documents that are never trained on, without denoising whatever the objective. "
        "The lower curve generalises better; one that turns upwards has begun to memorise."
    )
    return _picture(figure, axes, "Validation loss", caption)


def _answers(run: Run) -> Picture | None:
    measured = [(one, color, line) for one, color, line in _runs(run) if "val_accuracy" in (one.validation or {})]
    if not measured:
        return None
    figure, axes = _axes("right answers (%)")
    for one, color, line in measured:
        series = one.validation or {}
        percent = 100 * series["val_accuracy"]
        axes.plot(series["step"], percent, line, color=color, label=one.label, marker="o", markersize=3)
    axes.set_ylim(0, 100)
    caption = (
        "The share of validation questions that the model answers as expected, to the last token, when it always takes "
        "the likeliest one."
    )
    return _picture(figure, axes, "Right answers", caption)


def _tells_apart(run: Run) -> Picture | None:
    series = run.validation or {}
    kinds = {"supporting": RUN, "interference": BASELINE}
    if not all(f"val_critical_{kind}" in series for kind in kinds):
        return None
    figure, axes = _axes("share of tokens (%)")
    for kind, color in kinds.items():
        critical, base = (100 * series[f"val_{name}_{kind}"] for name in ("critical", "base"))
        axes.plot(
            series["step"], critical, "-", color=color, label=f"{kind}, of the critical", marker="o", markersize=3
        )
        axes.plot(series["step"], base, ":", color=color, label=f"{kind}, of all")
    caption = (
        "What detection, on validation documents, takes for critical. Solid: the share of supporting and interference "
        "facts among the critical tokens. Dotted: their share among all tokens, which is what choosing blindly would "
        "give. Detection tells facts from noise where solid lies above dotted."
    )
    return _picture(figure, axes, "Does detection find the facts", caption)


def _noise(run: Run) -> Picture | None:
    if "noise_fraction" not in run.training:
        return None
    figure, axes = _axes("share of tokens (%)")
    percent = run.training | {"noise_fraction": 100 * run.training["noise_fraction"]}
    _curve(axes, percent, "noise_fraction", "called noise", RUN, "-")
    axes.set_ylim(0, 100)
    caption = (
        "A token is called noise when the gradient of its embedding is shorter than the mean over its document: "
        "moving it would hardly change the loss. A few tokens with long gradients pull the mean up, so most tokens "
        "lie below it. Near 50 % the gradients are alike and single out nothing."
    )
    return _picture(figure, axes, "Noise fraction", caption)


def _threshold(run: Run) -> Picture | None:
    if "threshold" not in run.training:
        return None
    figure, axes = _axes("mean gradient norm")
    _curve(axes, run.training, "threshold", "threshold", RUN, "-", log=True)
    caption = (
        "The line between noise and critical tokens: the mean length of the embedding gradients in a document. "
        "It tends to shrink as the model learns and with longer documents, and shifts in proportion to the gradient "
        "shrink with it."
    )
    return _picture(figure, axes, "Detection threshold", caption)


def _strength(run: Run) -> Picture | None:
    names = {"delta_to_embedding": "size of the shift, ‖δ‖ / ‖E‖", "changed_fraction": "embedding elements changed"}
    present = {key: name for key, name in names.items() if key in run.training}
    if not present:
        return None
    figure, axes = _axes("ratio")
    for (key, name), color, line in zip(present.items(), (RUN, BASELINE), ("-", "--"), strict=False):
        _curve(axes, run.training, key, name, color, line, log=True)
    caption = (
        "How hard denoising pushes. Solid: length of the shift of a noise token's embedding, relative to the "
        "embedding. Dashed: share of embedding elements that differ at all afterwards; in bf16 a shift below "
        "about 0.3 % of an element is rounded away. Zeros do not fit on a log axis and are left out."
    )
    return _picture(figure, axes, "Denoising strength", caption)


def _time(run: Run) -> Picture | None:
    series = run.training
    if "step_time" not in series:
        return None
    figure, axes = _axes("seconds a step")
    caption = "Wall-clock time of a step. The first one includes start-up and may leave the picture."
    passes = [one for one in objective_of(run.config).PASSES if one.metric in series]
    if passes and "training_time" in series:
        names = [*(one.title for one in passes), "training pass, optimizer"]
        colors = [*reversed(BEFORE_TRAINING[: len(passes)]), RUN]
        columns = [series[key] for key in (*(one.metric for one in passes), "training_time")]
        axes.stackplot(series["step"], *columns, labels=names, colors=colors, alpha=0.8, linewidth=0)
        caption += "".join(f" {one.sentence}" for one in passes)
    else:
        _curve(axes, series, "step_time", run.label, RUN, "-")
    if run.baseline is not None:
        _curve(axes, run.baseline.training, "step_time", run.baseline.label, BASELINE, "--")
    axes.set_ylim(0, 1.5 * float(np.nanpercentile(series["step_time"], 90)))
    return _picture(figure, axes, "Step time", caption)


def _throughput(run: Run) -> Picture | None:
    if "tokens_per_second" not in run.training:
        return None
    figure, axes = _axes("tokens per second")
    for one, color, line in _runs(run):
        _curve(axes, one.training, "tokens_per_second", one.label, color, line)
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
    return _picture(figure, axes, "Throughput", "Tokens fed per second of step time; higher is better.")


def _runs(run: Run) -> list[tuple[Run, str, str]]:
    pair = [(run, RUN, "-")]
    return pair if run.baseline is None else [*pair, (run.baseline, BASELINE, "--")]


def _axes(label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.0, 3.1))
    axes = figure.add_axes((0.13, 0.15, 0.85, 0.81))
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    return figure, axes


def _curve(axes: Axes, series: Series, key: str, label: str, color: str, line: str, log: bool = False) -> None:
    if key not in series:
        return
    values = np.where(series[key] > 0, series[key], np.nan) if log else series[key]
    window = max(1, len(values) // 20)
    if window > 1:
        axes.plot(series["step"], values, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(series["step"], _moving_average(values, window), line, color=color, label=label, linewidth=1.8)
    if log and not np.isnan(values).all():
        axes.set_yscale("log")


def _moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and up to ``window - 1`` before it; nan values count nowhere."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, (window - 1, 0), constant_values=np.nan), window)
    known = ~np.isnan(windows)
    return np.where(known, windows, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


def _picture(figure: Figure, axes: Axes, title: str, caption: str) -> Picture:
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(loc="best", fontsize=8)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    encoded = base64.b64encode(drawn.getvalue()).decode()
    return Picture(title=title, caption=caption, source=f"data:image/svg+xml;base64,{encoded}")
