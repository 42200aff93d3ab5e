"""The console script ``nemo-cdt``: everything that is not a training run. A verb imports what it needs, when run."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nemo_cdt.mistakes import reported


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    with reported():
        return parsed.verb(parsed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nemo-cdt", description="Around training runs of recipes/cdt_llama31.py.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    doctor = verbs.add_parser("doctor", help="say what is installed, what does not fit, and what to do about it")
    doctor.set_defaults(verb=_doctor)

    convert = verbs.add_parser("convert", help="a Hugging Face Llama into a NeMo checkpoint, or back")
    convert.add_argument("source", type=Path, metavar="SRC", help="a folder of either kind")
    convert.add_argument("destination", type=Path, metavar="DST", help="a folder that does not exist yet")
    convert.set_defaults(verb=_convert)

    report = verbs.add_parser("report", help="write RUN/report.html, also of a run that was interrupted")
    report.add_argument("run", type=Path, metavar="RUN", help="a run's output folder")
    report.set_defaults(verb=_report)
    return parser


def _doctor(_: argparse.Namespace) -> int:
    from nemo_cdt.doctor import doctor

    return doctor()


def _convert(parsed: argparse.Namespace) -> int:
    from nemo_cdt.nemo.convert import convert

    convert(parsed.source, parsed.destination)
    return 0


def _report(parsed: argparse.Namespace) -> int:
    from nemo_cdt.report import write_report

    print(write_report(parsed.run))
    return 0
