"""Does CDT help? Small Llamas learn multi-hop questions in part, then go on with each objective from there.

    python benchmarks/effect.py --jobs 6
    python benchmarks/effect.py --seeds 42,43 --only ce,cdt_gradient_5e-5

For each seed one plain run from random weights ends where it answers --target of its validation right. From those
weights every arm trains on the same new data, for as many steps as `ce` (budget `steps`); where a step takes longer it
is also judged after as many as fit into the time of `ce` (budget `time`): the same run, earlier. What is done in --out
is not done again, so that several sessions can share the work; each writes the result of all that is there. Without
a GPU it runs in miniature, to try it and not to report it.
"""

import argparse
import gc
import hashlib
import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from omegaconf import OmegaConf

from benchmarks import effect_jobs, effect_report, runs
from benchmarks.effect_arms import ARMS
from benchmarks.measured import ROOT, Results, Row, attempted, command, on_gpu
from nemo_cdt import console
from nemo_cdt.analysis.analyzed_model import AnalyzedModel, choose_device, load
from nemo_cdt.analysis.samples import Sample, load_samples
from nemo_cdt.analysis.settings import Samples
from nemo_cdt.config import Accelerator, Config, Precision, save
from nemo_cdt.data.tokenizer import load_tokenizer
from nemo_cdt.evaluation.model import read_config
from nemo_cdt.evaluation.questions import judgement
from nemo_cdt.objectives import objective_of
from nemo_cdt.utils.atomic_write import atomic_write
from nemo_cdt.utils.user_errors import fail, reported
from nemo_cdt.versions import versions

FIRST, TIMES = "first", "times"
"""The phase that all arms of a seed start from, and its folder; and what each objective's step takes."""
MINIATURE = """
    model.num_layers=1 model.hidden_size=32 model.ffn_hidden_size=64 model.num_attention_heads=2 data.seq_length=1024
    data.validation_samples=2 data.num_workers=0 trainer.max_steps=2 trainer.global_batch_size=2
    trainer.micro_batch_size=1 trainer.precision=fp32 trainer.accelerator=cpu
"""
NEW_DATA = 1_000_000
"""Added to a seed after its first phase: other documents than that has seen."""
QUESTIONS = 7
"""The seed of the questions that all are asked, of a split that nobody trains on."""
WARM_UP = 2
BATCH = 50
"""Questions that are judged at a time."""
LOGGED = ("loss", "noise_fraction", "delta_to_embedding", "changed_fraction", "step_time")


def main(words: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    arguments = parsed(words)
    with reported():
        console.set_up()
        if arguments.only == TIMES:
            times(arguments)
            return
        if arguments.jobs > 1:
            effect_jobs.run(arguments, [*words])
        else:
            run(arguments)
        if arguments.jobs:
            report(arguments)


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=numbers, default=[42, 43, 44, 45, 46, 47], help="by commas")
    add("--jobs", type=int, default=1, help="seeds at a time, each in a process of its own; 0: as one of several")
    only = f"arms by commas, done in that order, of {','.join(ARMS)}; ce comes first. first: none yet"
    add("--only", type=arms, default=list(ARMS), help=only)
    add("--minutes", type=float, default=math.inf, help="no arm begins that would not end before")
    add("--lengths", type=numbers, default=[768, 1024, 2048] if on_gpu() else [1024], help="of the questions")
    add("--samples", type=int, default=100 if on_gpu() else 2, help="questions of each length and number of hops")
    add("--target", type=float, default=0.4, help="validation accuracy that ends the first phase")
    add("--first-steps", type=int, default=1600 if on_gpu() else 4, help="of the first phase at most")
    add("--first-lr", type=float, default=1e-3, help="its learning rate")
    add("--first-batch", type=int, default=128 if on_gpu() else 2, help="its rows a step")
    add("--interval", type=int, default=200 if on_gpu() else 2, help="steps of it between validations")
    add("--steps", type=int, default=250 if on_gpu() else 2, help="of each arm")
    add("--timed", type=int, default=20 if on_gpu() else 2, help="steps that are timed of each objective")
    add("--out", type=Path, default=ROOT / "runs/effect")
    others = "results of other seeds, made elsewhere, which count too in what is written"
    add("--with", nargs="*", dest="others", metavar="FILE", type=Path, default=[], help=others)
    add("--set", nargs="*", default=[], help="overrides of experiment=effect, as model.fp32_residual=true")
    return parser.parse_args(words)


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def arms(text: str) -> list[str] | str:
    if text in (FIRST, TIMES):
        return [] if text == FIRST else text
    asked = ["ce", *text.split(",")]
    if unknown := set(asked) - set(ARMS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: no arm; there are {', '.join(ARMS)}")
    return [*dict.fromkeys(asked)]


def run(arguments: argparse.Namespace) -> None:
    """All that is asked for and not done, as far as the time goes."""
    deadline, longest = time.monotonic() + 60 * arguments.minutes, 0.0
    for seed, name in ((seed, name) for seed in arguments.seeds for name in (FIRST, *arguments.only)):
        folder = arguments.out / f"seed_{seed}" / name
        if is_done(folder, arguments):
            continue
        if time.monotonic() + longest > deadline:
            break
        begun = time.monotonic()
        row = first(seed, folder, arguments, deadline) if name == FIRST else arm(seed, name, folder, arguments)
        if row is None:
            break
        seconds = time.monotonic() - begun
        longest = longest if name == FIRST else max(longest, seconds)
        about = {"seed": seed, "arm": name, "command": command(), "date": time.strftime("%Y-%m-%d")}
        about |= {"versions": versions(), "settings": settings(arguments), "seconds": seconds}
        atomic_write(folder / effect_report.FILE, json.dumps(about | row, indent=1))
        print(f"seed {seed}  {name}  {seconds:.0f} s  {row.get('error', '')}", flush=True)


def report(arguments: argparse.Namespace) -> None:
    """The result of all that is there."""
    rows = effect_report.read(arguments.out, arguments.others)
    there = {(row["seed"], row["arm"]) for row in rows}
    missing = [
        f"{name} of seed {seed}"
        for seed in sorted({*arguments.seeds, *(seed for seed, _ in there)})
        for name in (FIRST, *arguments.only)
        if (seed, name) not in there
    ]
    if not any(row["arm"] != FIRST for row in rows):
        print(f"no arm is done in {arguments.out} yet")
        return
    results = Results("effect", arguments.out, settings(arguments))
    results.rows = rows
    summary = effect_report.summary(rows)
    times = {file.stem: json.loads(file.read_text()) for file in arguments.out.glob("times_*.json")}
    results.write(missing=missing, times=times, summary=effect_report.as_json(summary))
    effect_report.write(arguments.out, rows, summary, missing, command())
    print(
        f"{results.path}\n{arguments.out / 'report.html'}\n{len(missing)} of the runs asked for are missing", flush=True
    )


def settings(arguments: argparse.Namespace) -> Row:
    """What makes results comparable."""
    names = ("lengths", "samples", "target", "first_steps", "first_lr", "first_batch", "interval", "steps", "set")
    experiment = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/experiment/effect.yaml"))
    return {name: getattr(arguments, name) for name in names} | {"gpu": on_gpu(), "experiment": experiment}


def is_done(folder: Path, arguments: argparse.Namespace) -> bool:
    """Ends the process where what is there was made with other settings: the two cannot be compared."""
    file = folder / effect_report.FILE
    if not file.exists():
        return False
    there, ours = json.loads(file.read_text()), settings(arguments)
    if differing := effect_report.different(there, ours):
        key = differing[0]
        fail(
            f"{file} was made with {key}={there['settings'].get(key)}, not {ours[key]}: set another --out, or the same"
        )
    return True


# --- training


def configured(arguments: argparse.Namespace, output: Path, *overrides: str) -> Config:
    words = ["experiment=effect", *([] if on_gpu() else MINIATURE.split()), *arguments.set, f"output={output}"]
    return runs.composed([*words, *" ".join(overrides).split()])


def trained(config: Config) -> Row:
    from nemo_cdt.training import train

    save(config, Path(config.output, "config.yaml"))
    train(config)
    gc.collect()
    return {}


def first(seed: int, folder: Path, arguments: argparse.Namespace, deadline: float) -> Row | None:
    """Plain training until it answers ``--target`` of its validation right; None where the time ends before that.

    In attempts of ``--interval`` steps, each of which resumes the one before.
    """
    from nemo_cdt.checkpoint.steps import steps_done

    runs.own(folder)
    run, exported = folder / "run", folder / "hf"
    accuracies = logged(run, "val_accuracy")
    while not accuracies or (accuracies[-1] < arguments.target and len(accuracies) < attempts(arguments)):
        if time.monotonic() > deadline:
            return None
        done = steps_done(run / "checkpoints")
        if done == 0:
            shutil.rmtree(run, ignore_errors=True)  # of an attempt that saved nothing
        config = configured(
            arguments,
            run,
            f"objective=ce trainer.seed={seed} trainer.max_steps={done + arguments.interval}",
            f"trainer.global_batch_size={arguments.first_batch} optim.lr={arguments.first_lr}",
            f"optim.warmup_steps={min(100, arguments.interval // 2)}",
            f"trainer.val_interval={arguments.interval} resume={str(done > 0).lower()} export.hf={run / 'hf'}",
        )
        trained(config)
        accuracies = logged(run, "val_accuracy")
    shutil.rmtree(exported, ignore_errors=True)
    shutil.copytree(run / "hf", exported)
    row = {
        "steps": steps_done(run / "checkpoints"),
        "reached": accuracies[-1] >= arguments.target,
        "validation_accuracy": accuracies,
        "start": digest(exported),
        "budgets": {"steps": {"steps": 0, "cells": evaluated(exported, arguments)}},
    }
    tidy(run)
    return row


def attempts(arguments: argparse.Namespace) -> int:
    return math.ceil(arguments.first_steps / arguments.interval)


def arm(seed: int, name: str, folder: Path, arguments: argparse.Namespace) -> Row:
    """Trains for the steps of ``ce``, and is judged after those that fit into its time, and at the end."""
    start, run = folder.parent / FIRST / "hf", folder / "run"
    if not start.exists():
        fail(f"{start}, which the arms of seed {seed} start from, is not there: bring it along")
    runs.own(folder)
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that did not end
    runs.own(folder)
    new_data = f"init.hf={start} trainer.seed={seed + NEW_DATA} trainer.max_steps={arguments.steps}"
    make = partial(configured, arguments, run, ARMS[name], new_data)
    relative = relative_time(make(), arguments)
    budgets = {"time": max(1, math.floor(arguments.steps / relative)), "steps": arguments.steps}
    failed = attempted(trained, make(f"trainer.checkpoint_interval={budgets['time']} trainer.checkpoints_kept=0"))
    if failed.get("out_of_memory"):
        fail(f"seed {seed}, {name}: {failed['error']}; set trainer.micro_batch_size by --set")
    judgements = {steps: judged(run, steps, arguments) or failed for steps in sorted(set(budgets.values()))}
    tidy(run)
    found = {budget: {"steps": steps} | judgements[steps] for budget, steps in budgets.items()}
    return {"start": digest(start), "overrides": ARMS[name], "relative_time": relative, "budgets": found} | failed


def judged(run: Path, steps: int, arguments: argparse.Namespace) -> Row | None:
    """What ``run`` was like after ``steps``; None where it did not come so far."""
    from nemo_cdt.nemo.convert import convert

    checkpoint, exported = run / "checkpoints" / f"step={steps}", run / f"hf_{steps}"
    if not checkpoint.exists():
        return None
    convert(checkpoint, exported)
    means = {name: statistics.fmean(logged(run, name)[:steps] or [math.nan]) for name in LOGGED}
    training = {name: value for name, value in means.items() if not math.isnan(value)}
    return {"training": training, "cells": evaluated(exported, arguments)}


def logged(run: Path, name: str) -> list[float]:
    """What the run's metrics say of it, in the order of its steps."""
    file = run / "metrics.jsonl"
    rows = map(json.loads, file.read_text().splitlines()) if file.exists() else []
    return [float(row[name]) for row in rows if name in row]


def digest(exported: Path) -> str:
    return hashlib.sha256((exported / "model.safetensors").read_bytes()).hexdigest()


def tidy(run: Path) -> None:
    """What says how a run went stays, what it trained goes."""
    for path in run.iterdir() if run.exists() else ():
        if path.name not in ("config.yaml", "metrics.jsonl", "versions.json"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def relative_time(config: Config, arguments: argparse.Namespace) -> float:
    """A step of this objective over one of ``ce``, at least 1; measured once on a device, and kept in ``--out``."""
    if not objective_of(config).PASSES:
        return 1.0
    file = arguments.out / f"times_{versions()['device'].replace(' ', '_')}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    for objective in ("ce", config.objective.name):
        if objective not in known:
            steps = arguments.timed + WARM_UP
            with runs.folder() as folder:
                timed = configured(arguments, folder / "run", ARMS[_any(objective)], f"trainer.max_steps={steps}")
                known[objective] = [step["seconds"] for step in runs.fit(timed)[WARM_UP:]]
            atomic_write(file, json.dumps(known, indent=1))
    return max(1.0, statistics.median(known[config.objective.name]) / statistics.median(known["ce"]))


def times(arguments: argparse.Namespace) -> None:
    """Measures what the time of every arm's step is told by."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    with runs.folder() as folder:
        for overrides in ARMS.values():
            relative_time(configured(arguments, folder / "run", overrides), arguments)


def _any(objective: str) -> str:
    """An arm with this objective: all of one take the same time."""
    return next(name for name in ARMS if name.partition("_")[0] == objective)


# --- judging


def evaluated(exported: Path, arguments: argparse.Namespace) -> list[Row]:
    """A row for each length and number of hops: what :func:`asked` finds, over all of its questions."""
    torch.set_float32_matmul_precision("high")  # TF32: a hundred thousand questions are asked
    config = read_config(exported)
    analyzed = load(exported, config, Precision.fp32, choose_device(Accelerator.auto))
    return [
        {"seq_length": length, "hops": hops}
        | asked(analyzed, questions(length, hops, arguments.samples, config.vocab_size))
        for length in arguments.lengths
        for hops in (3, 4)
    ]


@cache
def questions(length: int, hops: int, samples: int, vocab_size: int) -> list[Sample]:
    """The same for every run."""
    data = Samples(samples=samples, seq_length=length, hops=[hops])
    return load_samples(data, load_tokenizer("byte"), vocab_size, QUESTIONS)


def asked(analyzed: AnalyzedModel, samples: Sequence[Sample]) -> Row:
    """What :func:`judgement` says; JSON has no NaN."""
    found: Row = {"questions": len(samples), **judgement(analyzed.model, samples, BATCH)}
    return {name: None if math.isnan(value) else value for name, value in found.items()}


if __name__ == "__main__":
    main()
