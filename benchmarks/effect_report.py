"""What ``benchmarks/effect.py`` left in its folders, as statistics over seeds, and as a page that explains itself."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.effect_arms import ARMS
from benchmarks.measured import Row
from nemo_cdt.analysis.estimate import Estimate
from nemo_cdt.analysis.page import Facts, write_page
from nemo_cdt.analysis.result import Drawing, Result, Table, axes
from nemo_cdt.analysis.significance import paired_t
from nemo_cdt.report.plots import STYLE

FILE = "result.json"
FIRST, PLAIN = "first", "ce"
BUDGETS = {"steps": "as many steps as ce", "time": "as much time as ce"}
COLORS, MARKERS = {"steps": "#0072B2", "time": "#D55E00"}, {"steps": "o", "time": "s"}
FIGURES = ("accuracy", "loss", "critical_supporting", "base_supporting", "critical_interference", "base_interference")
OTHER_TIME = "time of another session"
ALIKE = 0.1
"""How far the times of a step may differ in two sessions that share the budget ``time``."""
Cell = tuple[int, int] | None
"""Length and hops; None: all of them, each weighing the same."""


@dataclass(kw_only=True, slots=True)
class Finding:
    """One figure of one arm in one cell: over the seeds that have it, and less that of ``ce`` of the same seed.

    t, p: of the paired test against ``ce``; nan where there is nothing to test.
    """

    arm: str
    budget: str
    cell: Cell
    figure: str
    mean: Estimate
    difference: Estimate
    differences: list[float]
    t: float
    p: float
    failed: int


def read(folder: Path, others: Sequence[Path] = ()) -> list[Row]:
    """Every run that is done, here or in results of ``others``, by seed and then in the order of the arms.

    Raises:
        ValueError: where a file holds no such results, a run is there twice, arms of one seed did not start from the
            same weights, or runs are not comparable.
    """
    ours = [json.loads(file.read_text()) | {"file": str(file)} for file in folder.glob(f"seed_*/*/{FILE}")]
    theirs = [row | {"file": str(file)} for file in others for row in _rows_of(file)]
    rows = ours + [_without_other_time(row, ours) for row in theirs]
    like = max(rows, key=lambda row: row["arm"] != FIRST, default={})
    first: dict[int, Row] = {}
    there: dict[tuple[int, str], Row] = {}
    for row in sorted(rows, key=lambda row: (row["seed"], _order(row))):
        begun, same = first.setdefault(row["seed"], row), there.setdefault((row["seed"], row["arm"]), row)
        if same is not row:
            raise ValueError(f"{row['arm']} of seed {row['seed']} is in {same['file']} and in {row['file']}: take one")
        if row["start"] != begun["start"]:
            raise ValueError(
                f"{row['file']} began from other weights than {begun['file']}: remove that seed's folder, or "
                "bring its results and its first/hf from one place"
            )
        if differing := different(row, like["settings"]):
            raise ValueError(f"{row['file']} and {like['file']} differ in {differing[0]}: they are no one result")
    return [*there.values()]


def _rows_of(file: Path) -> list[Row]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is no result: {error}") from error
    if found.get("benchmark") != "effect":
        raise ValueError(f"{file} is no result of benchmarks/effect.py")
    return found["rows"]


def _without_other_time(row: Row, ours: Sequence[Row]) -> Row:
    """``row`` without its budget ``time`` where a step of its objective took another time in our session."""
    times = [one["relative_time"] for one in ours if one["arm"] != FIRST and _objective(one) == _objective(row)]
    if row["arm"] == FIRST or all(abs(row["relative_time"] / time - 1) <= ALIKE for time in times):
        return row
    return row | {"budgets": {OTHER_TIME if name == "time" else name: of for name, of in row["budgets"].items()}}


def _objective(row: Row) -> str:
    return row["arm"].partition("_")[0]


def different(row: Row, settings: Row) -> list[str]:
    """The settings that make ``row`` no part of one result with runs of ``settings``."""
    of_arms = ("steps",) if row["arm"] == FIRST else ()
    return [key for key, value in settings.items() if key not in of_arms and row["settings"].get(key) != value]


# --- statistics


def interval(values: Sequence[float]) -> Estimate:
    """Student's 95 % interval of the mean. A bootstrap of five seeds would be too narrow."""
    known = np.array([value for value in values if not math.isnan(value)])
    count = len(known)
    if count < 2:
        mean = float(known[0]) if count else np.nan
        return Estimate(mean=mean, low=np.nan, high=np.nan, count=count)
    half = stats.t.ppf(0.975, count - 1) * known.std(ddof=1) / math.sqrt(count)
    return Estimate(
        mean=float(known.mean()), low=float(known.mean() - half), high=float(known.mean() + half), count=count
    )


def summary(rows: Sequence[Row]) -> list[Finding]:
    """Of every arm, budget, cell and figure. The first phase is an arm too: what there was before."""
    values = {(row["seed"], row["arm"], budget): row for row in rows for budget in BUDGETS}
    seeds = sorted({row["seed"] for row in rows})
    arms = list(dict.fromkeys(row["arm"] for row in sorted(rows, key=_order)))
    found = []
    for budget, arm, cell, figure in (
        (b, a, c, f) for b in BUDGETS for a in arms for c in [None, *cells(rows)] for f in FIGURES
    ):

        def value(seed: int, of: str, budget: str = budget, cell: Cell = cell, figure: str = figure) -> float:
            return _value(values.get((seed, of, budget)), budget, cell, figure)

        own = [value(seed, arm) for seed in seeds]
        pairs = [(seed, value(seed, arm) - value(seed, PLAIN)) for seed in seeds]
        differences = [difference for _, difference in pairs if not math.isnan(difference)]
        t, p = paired_t(np.array(differences)) if len(differences) > 1 else (np.nan, np.nan)
        failed = sum("error" in values[seed, arm, budget] for seed in seeds if (seed, arm, budget) in values)
        found.append(
            Finding(
                arm=arm, budget=budget, cell=cell, figure=figure, mean=interval(own), t=t, p=p, failed=failed,
                difference=interval(differences), differences=differences,
            )
        )  # fmt: skip
    return found


def _order(row: Row) -> int:
    return [FIRST, *ARMS].index(row["arm"])


def cells(rows: Sequence[Row]) -> list[tuple[int, int]]:
    return sorted(
        {(c["seq_length"], c["hops"]) for row in rows for b in row["budgets"].values() for c in b.get("cells", [])}
    )


def _value(row: Row | None, budget: str, cell: Cell, figure: str) -> float:
    """nan where the run is missing or failed. The first phase has one result for both budgets."""
    if row is None:
        return math.nan
    of = row["budgets"].get("steps" if row["arm"] == FIRST else budget, {})
    values = [c[figure] for c in of.get("cells", []) if cell in (None, (c["seq_length"], c["hops"]))]
    return float(np.mean([math.nan if value is None else value for value in values])) if values else math.nan


def as_json(found: Sequence[Finding]) -> list[Row]:
    return [
        {
            "arm": one.arm,
            "budget": one.budget,
            "seq_length": one.cell and one.cell[0],
            "hops": one.cell and one.cell[1],
            "figure": one.figure,
            "mean": _estimate(one.mean),
            "less_ce": _estimate(one.difference) | {"t": _number(one.t), "p": _number(one.p)},
            "failed": one.failed,
        }
        for one in found
    ]


def _estimate(one: Estimate) -> Row:
    row = one.json()
    return {"mean": row["mean"], "low": row["low"], "high": row["high"], "seeds": row["samples"]}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


# --- the page


def write(folder: Path, rows: Sequence[Row], found: Sequence[Finding], missing: Sequence[str], command: str) -> None:
    """``report.html``, and a PNG of each of its pictures."""
    with matplotlib.rc_context(STYLE):
        write_page(folder, _result(rows, found, missing), _facts(rows), command)


def _facts(rows: Sequence[Row]) -> Facts:
    settings, last = rows[-1]["settings"], rows[-1]
    experiment = settings["experiment"]
    questions = last["budgets"]["steps"].get("cells", [{}])[0].get("questions", settings["samples"])
    return Facts(
        values={
            "Model": ", ".join(f"{name} {value}" for name, value in experiment["model"].items())
            if settings["gpu"]
            else "in miniature, on a CPU: the numbers below mean nothing",
            "Overrides": " ".join(settings["set"]) or "none",
            "First phase": f"plain, learning rate {settings['first_lr']}, {settings['first_batch']} rows a step, "
            f"to a validation accuracy of "
            f"{settings['target']} or {settings['first_steps']} steps, validated every {settings['interval']}",
            "Seeds": ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows})),
            "Questions": f"{questions} of each of {', '.join(f'{n} tokens, {h} hops' for n, h in cells(rows))}; the "
            "same for every run, and of no run's training data",
            "Made on": "; ".join(sorted({f"{row['versions']['device']}, {row['date']}" for row in rows})),
            "Versions": "; ".join(
                sorted({", ".join(f"{n} {v}" for n, v in row["versions"].items() if n != "device") for row in rows})
            ),
            "Commands": "; ".join(sorted({row["command"] for row in rows})),
        }
    )


def _result(rows: Sequence[Row], found: Sequence[Finding], missing: Sequence[str]) -> Result:
    tests = len({one.arm for one in found} - {FIRST, PLAIN})
    return Result(
        title="Does context denoising help a small model?",
        explanation=(
            "For each seed a small Llama learned, by plain training, questions whose answer follows from three or four "
            "facts hidden in a long text, among other facts that mislead, until it answered part of them right. From "
            "those weights each arm then trained on the same new data. ce is plain cross-entropy. sft is the same here "
            "(only answers are labelled): how far sft and ce differ is what chance alone does. longce weighs "
            "tokens by what the long context adds. cdt_gradient_S takes S times the gradient from the embedding of "
            "each noise token (Eq. 3; the paper's S is 5e-5), cdt_relative_R a step of R of the embedding's length. "
            "An answer is right where greedy decoding writes it. Intervals are Student's, 95 %, over seeds; p is that "
            f"of a t-test paired by seed against ce. It is not corrected for {tests} arms: of so many without any "
            f"effect, about {tests / 20:.1f} are expected below 0.05."
        ),
        notices=_notices(rows, missing),
        tables=[
            *(_overall(found, budget) for budget in BUDGETS),
            *(_by_cell(rows, found, budget) for budget in BUDGETS),
            *(_detection(found, budget) for budget in BUDGETS),
            _training(rows),
            _each(rows),
        ],
        drawings=[_accuracy(found), _differences(found), *(_map(rows, found, b) for b in BUDGETS), _lift(found)],
    )


def _notices(rows: Sequence[Row], missing: Sequence[str]) -> list[str]:
    notices = [f"Not done yet: {', '.join(missing)}."] if missing else []
    notices += [f"{row['arm']} of seed {row['seed']} failed: {row['error']}" for row in rows if "error" in row]
    if others := [row for row in rows if OTHER_TIME in row["budgets"]]:
        steps = ", ".join(sorted({f"{_objective(row)} {row['budgets'][OTHER_TIME]['steps']}" for row in others}))
        notices.append(
            f"{len(others)} runs of another session count for as many steps alone: there a step's time was another "
            f"part of ce's, and so the steps that fit into its time ({steps})."
        )
    if early := [str(row["seed"]) for row in rows if row["arm"] == FIRST and not row["reached"]]:
        notices.append(
            f"The first phase did not reach its accuracy for seed {', '.join(early)}; it stays in all means."
        )
    return notices


def _of(found: Sequence[Finding], figure: str, budget: str, cell: Cell = None) -> list[Finding]:
    return [one for one in found if (one.figure, one.budget, one.cell) == (figure, budget, cell)]


def _overall(found: Sequence[Finding], budget: str) -> Table:
    losses = _of(found, "loss", budget)
    rows = [
        [
            one.arm,
            str(one.mean),
            "" if one.arm == PLAIN else str(one.difference),
            "—" if math.isnan(one.p) else f"{one.p:.3g}",
            str(loss.mean),
            "" if one.arm == PLAIN else str(loss.difference),
            f"{one.mean.count}" + (f", {one.failed} failed" if one.failed else ""),
        ]
        for one, loss in zip(_of(found, "accuracy", budget), losses, strict=True)
    ]
    return Table(
        title=f"All questions, {BUDGETS[budget]}",
        caption="first: before the arms. Loss: of the answer, nats a token.",
        header=["arm", "accuracy", "less ce", "p", "loss", "less ce", "seeds"],
        rows=rows,
    )


def _by_cell(rows: Sequence[Row], found: Sequence[Finding], budget: str) -> Table:
    columns = [_of(found, "accuracy", budget, cell) for cell in cells(rows)]
    return Table(
        title=f"Accuracy by length and hops, {BUDGETS[budget]}",
        caption="",
        header=["arm", *(f"{length:,} tokens, {hops} hops" for length, hops in cells(rows))],
        rows=[[line[0].arm, *(str(one.mean) for one in line)] for line in zip(*columns, strict=True)],
    )


def _detection(found: Sequence[Finding], budget: str) -> Table:
    names = [name for name in FIGURES if name.startswith(("critical", "base"))]
    columns = [_of(found, name, budget) for name in names]
    return Table(
        title=f"Detection, {BUDGETS[budget]}",
        caption=(
            "Shares of the facts among the critical tokens, whose embedding gradient is not below its mean (Eq. 2), "
            "and among all: detection tells something where the first is larger. All questions."
        ),
        header=["arm", *(f"{name.replace('_', ', ').replace('base', 'among all')}" for name in names)],
        rows=[[line[0].arm, *(str(one.mean) for one in line)] for line in zip(*columns, strict=True)],
    )


def _training(rows: Sequence[Row]) -> Table:
    names = ["loss", "noise_fraction", "delta_to_embedding", "changed_fraction", "step_time"]
    arms = dict.fromkeys(row["arm"] for row in sorted(rows, key=_order) if row["arm"] != FIRST)

    def means(arm: str, of: Callable[[Row], float]) -> str:
        return str(interval([of(row) for row in rows if row["arm"] == arm]))

    def logged(name: str) -> Callable[[Row], float]:
        return lambda row: row["budgets"]["steps"].get("training", {}).get(name, math.nan)

    return Table(
        title="Training",
        caption=(
            "Means over an arm's steps, then over seeds. delta_to_embedding: the shift's length over the embedding's, "
            "of noise tokens; changed_fraction: elements of the embedding that differ after it, in the run's dtype; "
            "where that is 0 an arm is plain training. A step's time over that of ce is measured beforehand, in runs "
            "of their own; step_time is in seconds, of whatever the machine did besides."
        ),
        header=["arm", *names, "time of a step over ce's", "steps in the time of ce"],
        rows=[
            [
                arm,
                *(means(arm, logged(name)) for name in names),
                means(arm, lambda row: row["relative_time"] if "time" in row["budgets"] else math.nan),
                means(arm, lambda row: row["budgets"].get("time", {}).get("steps", math.nan)),
            ]
            for arm in arms
        ],
    )


def _each(rows: Sequence[Row]) -> Table:
    lines = []
    for row in rows:
        for budget, of in row["budgets"].items():
            accuracy, loss = (_value(row, budget, None, name) for name in ("accuracy", "loss"))
            shown = [f"{value:.4g}" if not math.isnan(value) else "—" for value in (accuracy, loss)]
            lines.append([str(row["seed"]), row["arm"], budget, str(of["steps"] or row["steps"]), *shown])
    return Table(
        title="Every seed",
        caption="All questions of each run. Nothing is left out.",
        header=["seed", "arm", "budget", "steps", "accuracy", "loss"],
        rows=lines,
    )


def _lines(found: Sequence[Finding]) -> tuple[list[str], np.ndarray]:
    arms = list(dict.fromkeys(one.arm for one in found))
    return arms, np.arange(len(arms))[::-1].astype(float)


def _tall(arms: Sequence[str], x: str) -> tuple[Figure, matplotlib.axes.Axes]:
    figure, drawn = axes(x, "")
    figure.set_size_inches(7.0, 1.2 + 0.3 * len(arms))
    return figure, drawn


def _accuracy(found: Sequence[Finding]) -> Drawing:
    arms, y = _lines(found)
    figure, drawn = _tall(arms, "right answers (%)")
    for offset, budget in zip((0.12, -0.12), BUDGETS, strict=True):
        means = [one.mean for one in _of(found, "accuracy", budget)]
        _bars(drawn, means, y + offset, budget)
    drawn.set_yticks(y, arms)
    drawn.set_ylim(-0.6, len(arms) - 0.4)
    caption = "Mean over seeds and its 95 % interval, of all questions. first: before the arms."
    return Drawing(name="accuracy", title="Accuracy", caption=caption, figure=figure)


def _differences(found: Sequence[Finding]) -> Drawing:
    shown = [one for one in found if one.arm not in (FIRST, PLAIN)]
    arms, y = _lines(shown)
    figure, drawn = _tall(arms, "right answers less those of ce (percentage points)")
    for offset, budget in zip((0.15, -0.15), BUDGETS, strict=True):
        of = _of(shown, "accuracy", budget)
        _bars(drawn, [one.difference for one in of], y + offset, budget)
        for one, at in zip(of, y + offset, strict=True):
            drawn.plot(np.multiply(100, one.differences), [at] * len(one.differences), "|", color="#555555")
    drawn.axvline(0, color="#555555", linewidth=0.8)
    drawn.set_yticks(y, arms)
    drawn.set_ylim(-0.6, len(arms) - 0.4)
    caption = (
        "Each stroke is a seed, beside ce of the same seed; the bar is the mean's 95 % interval. An interval that "
        "includes 0 does not tell the arm from ce."
    )
    return Drawing(name="differences", title="Against plain training", caption=caption, figure=figure)


def _bars(drawn: matplotlib.axes.Axes, means: Sequence[Estimate], y: np.ndarray, budget: str) -> None:
    half = np.nan_to_num([100 * (one.high - one.mean) for one in means])
    drawn.errorbar(
        [100 * one.mean for one in means], y, xerr=half, fmt=MARKERS[budget], color=COLORS[budget], markersize=4,
        label=BUDGETS[budget],
    )  # fmt: skip


def _map(rows: Sequence[Row], found: Sequence[Finding], budget: str) -> Drawing:
    shown = [one for one in found if one.arm not in (FIRST, PLAIN)]
    arms, _ = _lines(shown)
    columns = [[100 * one.difference.mean for one in _of(shown, "accuracy", budget, cell)] for cell in cells(rows)]
    values = np.array(columns).reshape(len(columns), len(arms)).T
    figure, drawn = _tall(arms, "tokens, hops")
    drawn.grid(False)
    most = max(1.0, float(np.nanmax(np.abs(values), initial=0.0)))
    image = drawn.imshow(values, cmap="PuOr", vmin=-most, vmax=most, aspect="auto")
    for (line, column), value in np.ndenumerate(values):
        drawn.text(column, line, "—" if math.isnan(value) else f"{value:+.1f}", ha="center", va="center", fontsize=8)
    figure.colorbar(image, ax=drawn, label="percentage points")
    drawn.set_xticks(range(len(columns)), [f"{length:,}, {hops}" for length, hops in cells(rows)])
    drawn.set_yticks(range(len(arms)), arms)
    caption = f"Right answers less those of ce, mean over seeds, {BUDGETS[budget]}. Intervals are in the tables."
    return Drawing(name=f"cells_{budget}", title="By length and hops", caption=caption, figure=figure)


def _lift(found: Sequence[Finding]) -> Drawing:
    arms, y = _lines(found)
    figure, drawn = _tall(arms, "share of supporting facts' tokens (%)")
    for offset, budget in zip((0.12, -0.12), BUDGETS, strict=True):
        _bars(drawn, [one.mean for one in _of(found, "critical_supporting", budget)], y + offset, budget)
    base = float(np.nanmean([one.mean.mean for one in _of(found, "base_supporting", "steps")]))
    drawn.axvline(100 * base, color="#555555", linestyle="--", label="among all tokens")
    drawn.set_yticks(y, arms)
    drawn.set_ylim(-0.6, len(arms) - 0.4)
    caption = "Among the critical tokens; a blind choice finds the dashed line."
    return Drawing(name="detection", title="What detection finds", caption=caption, figure=figure)
