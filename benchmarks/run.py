"""Runs benchmarks by name; of each it prints a table and writes benchmarks/results/NAME_DEVICE_DATE.json.

    python benchmarks/run.py ceilings speed --lengths 8192,32768 --layers 4

Without a GPU each runs on a tiny model, to try it and not to report it; then --out is runs/benchmarks.
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measured import ROOT, Results, on_gpu, table
from nemo_cdt import console
from nemo_cdt.utils.user_errors import reported

# Imported by name when asked for: the peer needs no NeMo.
NAMES = {
    name: name
    for name in (
        "starts",
        "layouts",
        "resume",
        "ceilings",
        "speed",
        "longest",
        "alignment",
        "fp8",
        "packing",
        "frameworks",
        "checksums",
        "conversion",
        "saves",
    )
} | {"peer": "peer_hf"}


def main(words: Sequence[str] | None = None) -> None:
    # Lengths vary within a process: blocks of fixed sizes would leave memory behind that no other length can use.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    arguments = parsed(words)
    with reported():
        console.set_up()
        for name in arguments.names:
            run(name, arguments)


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("names", nargs="+", choices=sorted(NAMES), metavar="NAME", help=", ".join(sorted(NAMES)))
    add("--layers", type=int, default=4 if on_gpu() else None, help="of the model, whose widths stay")
    add("--lengths", type=lengths, help="of the sequences, by commas; default: those of the benchmark")
    add("--repetitions", type=int, default=5, help="of each figure")
    add("--labels", choices=["few", "all"], default="few", help="16 at a sequence's end, or all of them")
    add("--budget", type=float, default=540, help="seconds for each benchmark; no row begins after them")
    add("--out", type=Path, default=ROOT / ("benchmarks/results" if on_gpu() else "runs/benchmarks"))
    add("--starts", type=int, default=20, help="starts: how many")
    add("--steps", type=int, default=1, help="starts, alignment: of each")
    add("--racy", action="store_true", help="starts: with NeMo's race")
    add("--only", help="layouts, alignment, speed: one of them, as full,none")
    add("--hf", metavar="DIR", help="fp8: a trained model, as Hugging Face keeps it, in place of random weights")
    add("--beside", metavar="DIR", help="conversion: a checkout, whose code converts too")
    add("--longest", action="store_true", help="peer: search for the longest sequence instead")
    add("--no-optimizer", action="store_true", help="peer: passes only, where Adam's state does not fit")
    add(
        "--set",
        nargs="*",
        default=[],
        help="speed, longest, alignment, fp8, packing, frameworks, saves, resume: overrides of the recipe",
    )
    return parser.parse_args(words)


def lengths(text: str) -> list[int]:
    return [int(length) for length in text.split(",")]


def run(name: str, arguments: argparse.Namespace) -> None:
    benchmark = importlib.import_module(f"benchmarks.{NAMES[name]}")
    settings = {key: value for key, value in vars(arguments).items() if key not in ("names", "out", "deadline")}
    results = Results(name, arguments.out, settings)
    print(f"\n{name}: {benchmark.__doc__.splitlines()[0]}\n", flush=True)
    arguments.deadline = time.monotonic() + arguments.budget
    for row in benchmark.rows(arguments):
        results.add(row)
        if time.monotonic() > arguments.deadline:
            results.write(over_budget=True)
            print(f"--budget {arguments.budget:g} is spent: rows that were to follow are left out")
            break
    print(f"\n{table(results.rows)}\n\n{results.path}", flush=True)


if __name__ == "__main__":
    main()
