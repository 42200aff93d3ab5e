"""The alignment experiment of Llama-3.2-1B's size, random weights, from files in the published formats to curves.

A row is an objective: its losses, step by step, and what its steps took. The questions are those of ``data=multihop``,
written as LongMiT and LongAlpaca publish theirs, in bytes: what is learned is little, but nothing on the way is left
out. ``--set`` has overrides of the experiment; ``--only`` names an objective.
"""

import argparse
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import runs
from benchmarks.measured import Row, attempted, command, on_gpu, repeated
from nemo_cdt.data.documents import TokenType
from nemo_cdt.data.multihop import MultihopDocuments, MultihopSample
from nemo_cdt.data.tokenizer import load_tokenizer
from nemo_cdt.prepare.request import read
from nemo_cdt.prepare.write import prepare
from nemo_cdt.prepared import read_summary

EXPERIMENT = "alignment_llama32_1b_32k"
LENGTH, EIGHTHS, OF_EACH = (32768, range(1, 8), 24) if on_gpu() else (1536, range(4, 8), 4)
"""Of a row; how long its documents are, in eighths of that; how many there are of each length."""
SMALL, WINDOWS = (
    ("", "") if on_gpu() else ("model=tiny model.vocab_size=384", "objective.window=256 objective.stride=64")
)
OBJECTIVES = {"cdt": "", "sft": "", "longce": WINDOWS}
CURVES = ("reduced_train_loss", "detection_loss", "grad_norm", "noise_fraction", "changed_fraction")
PASSAGES = 16
WARM_UP = 2


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    if arguments.only not in (None, *OBJECTIVES):
        raise ValueError(f"--only {arguments.only}: alignment has {', '.join(OBJECTIVES)}")
    with runs.folder() as folder:
        data = prepared(folder)
        yield {"experiment": EXPERIMENT, "data": data, "set": " ".join(arguments.set)}
        for objective in [arguments.only] if arguments.only else OBJECTIVES:
            yield {"objective": objective} | attempted(trained, objective, folder, arguments)


def trained(objective: str, folder: Path, arguments: argparse.Namespace) -> Row:
    own = f"experiment={EXPERIMENT} objective={objective} {OBJECTIVES[objective]} output={folder}/{objective}"
    steps = f"trainer.max_steps={arguments.steps} trainer.global_batch_size=1 data.num_workers=1"
    length = f"data.path={folder}/prepared data.seq_length={LENGTH} data.document_length={LENGTH} init.hf=null"
    kept = f"report=false export.hf=null trainer.checkpoint_interval=0 {runs.DEVICE}"
    config = runs.composed(" ".join([own, SMALL, length, steps, kept, *arguments.set]).split())
    done = runs.fit(config)
    timed = done[WARM_UP:] or done
    row: Row = {"step_s": repeated([step["seconds"] for step in timed])}
    row["tokens_per_s"] = LENGTH * config.trainer.global_batch_size / row["step_s"]["median"]
    if "detection_time" in done[-1]:
        row["detection_s"] = repeated([step["detection_time"] for step in timed])
    row["peak_memory_gib"] = done[-1]["peak_memory_gib"]
    row["first_loss"], row["last_loss"] = (done[i]["reduced_train_loss"] for i in (0, -1))
    row["curves"] = {name: [step[name] for step in done] for name in CURVES if name in done[0]}
    if not all(math.isfinite(value) for curve in row["curves"].values() for value in curve):
        return row | {"error": "a figure is not finite", "out_of_memory": False}
    return row


def prepared(folder: Path) -> dict[str, Any]:
    """Writes ``folder``/prepared by way of `nemo-cdt prepare alignment`; its summary."""
    questions = list(_questions())
    few = len(questions) // 8
    write_longmit(folder / "longmit.jsonl", questions[few:])
    write_longalpaca(folder / "longalpaca.json", questions[:few])
    overrides = [
        f"longmit.input={folder}/longmit.jsonl",
        f"longalpaca.input={folder}/longalpaca.json",
        f"output={folder}/prepared",
        "tokenizer=byte",
        "workers=2",
        "longmit.evidence=[]",
        *(
            f"{source}.{setting}"
            for source in ("longmit", "longalpaca")
            for setting in (
                "samples=null",
                "validation_samples=0",
                f"min_tokens={LENGTH // 16}",
                f"max_tokens={LENGTH}",
            )
        ),
    ]
    return read_summary(prepare("alignment", read("alignment", overrides), command()))


def _questions() -> Iterator[MultihopSample]:
    tokenizer = load_tokenizer("byte")
    for eighths in EIGHTHS:
        length = LENGTH * eighths // 8
        documents = MultihopDocuments(tokenizer, seq_length=length, seed=eighths, size=OF_EACH, hops=[3, 4], emojis=3)
        yield from map(documents.sample, range(OF_EACH))


def write_longmit(path: Path, questions: list[MultihopSample]) -> None:
    """JSON lines: passages, those among them that hold a supporting fact, a question and its answer."""
    with path.open("w") as file:
        for question in questions:
            sentences = re.split(r"(?<=\.) ", context(question))
            size = math.ceil(len(sentences) / PASSAGES)
            passages = [" ".join(sentences[i : i + size]) for i in range(0, len(sentences), size)]
            supporting = question.parts(TokenType.supporting)
            row = {
                "type": "extractive",
                "language": "en",
                "all_docs": [{"content": passage} for passage in passages],
                "clue_docs": [{"content": text} for text in passages if any(fact in text for fact in supporting)],
                "question": question.question,
                "answer": question.answer,
            }
            file.write(json.dumps(row) + "\n")


def write_longalpaca(path: Path, questions: list[MultihopSample]) -> None:
    """One JSON array of instructions, their text within, and outputs."""
    rows = [
        {"instruction": f"{context(q)}\n{q.question}", "output": q.answer, "input": "", "file": ""} for q in questions
    ]
    path.write_text(json.dumps(rows))


def context(question: MultihopSample) -> str:
    return question.text[: question.text.rindex(question.question)].strip()
