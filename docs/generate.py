"""Writes docs/reference/ from the code: keys, metrics, commands and a run's folder. ``make docs`` runs it.

    python docs/generate.py

A test compares what is there with what this writes. Another fails for a key, a metric or a file without a meaning.
"""

import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

from nemo_cdt import cli
from nemo_cdt.analysis.settings import Settings as AnalyzeKeys
from nemo_cdt.config import Config
from nemo_cdt.config.compose import compose, conf_dir, groups, options
from nemo_cdt.config.help import descriptions, spelled
from nemo_cdt.cost.request import compose_planned
from nemo_cdt.fetch import Fetch
from nemo_cdt.launch.local.run import CONTENTS
from nemo_cdt.objectives import objective_class
from nemo_cdt.objectives.base import Metric
from nemo_cdt.prepare.settings import Prepare
from nemo_cdt.validation.places import OURS

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs/reference"
NOTE = "<!-- Written by `python docs/generate.py` from the code. Change the code, then run it again. -->\n"
Key = tuple[str, Field[Any], Any, str]
"""A dotted name, its field, its value and what it means."""


def pages() -> dict[str, str]:
    """The text of each page by its file's name."""
    made = {
        "configuration.md": configuration(),
        "metrics.md": metrics(),
        "commands.md": commands(),
        "run-folder.md": run_folder(),
    }
    return {name: NOTE + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n" for name, text in made.items()}


# Configuration


def configuration() -> str:
    run: Config = compose(["model=tiny"])
    parts = [CONFIGURATION, "## Groups\n", GROUPS]
    parts += [f"### {group}=\n\n{_table(('option', 'what it is'), _options(group))}" for group in groups()]
    parts += ["## A run\n", _keys([key for key in keys(run) if "." not in key[0]])]
    for item in fields(run):
        section = getattr(run, item.name)
        if item.name == "objective":
            parts += ["## objective\n", OBJECTIVE, _objectives()]
        elif is_dataclass(section):
            parts += [f"## {item.name}\n", _about(section), _keys([*keys(section, f"{item.name}.")])]
    cluster = compose_planned(["+cluster=h100", "model=tiny"]).cluster
    parts += ["## cluster\n", CLUSTER, _keys([*keys(cluster, "cluster.")])]
    parts += ["## Keys of nemo-cdt analyze\n", ANALYZE, _keys([*keys(AnalyzeKeys())])]
    parts += ["## Keys of nemo-cdt prepare\n", PREPARE, _keys([*keys(Prepare())])]
    parts += ["## Keys of nemo-cdt fetch\n", FETCH, _keys([*keys(Fetch())])]
    inspection = import_module("nemo_cdt.inspection").Inspection()
    parts += ["## Keys of nemo-cdt inspect\n", INSPECT, _keys([*keys(inspection)])]
    return "\n\n".join(parts)


def keys(schema: Any, prefix: str = "") -> Iterator[Key]:
    """Every key of a dataclass's instance that is no group."""
    meanings = descriptions(type(schema))
    for item in fields(schema):
        value = getattr(schema, item.name)
        if is_dataclass(value):
            yield from () if prefix == "" and item.name in RUN_GROUPS else keys(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, item, value, _sentence(meanings.get(item.name, ""))


def _keys(found: Sequence[Key]) -> str:
    launchers = any("launchers" in item.metadata for _, item, _, _ in found)
    head = ("key", "default", *(["launcher"] if launchers else []), "what it is")
    return _table(head, [_key_row(key, launchers) for key in found])


def _key_row(key: Key, launchers: bool) -> list[str]:
    name, item, value, meaning = key
    ours = item.metadata.get("launchers")
    asked = [", ".join(ours) if ours else "all"] if launchers else []
    return [f"`{name}`", f"`{_default(value)}`", *asked, meaning + _choices(value)]


def _default(value: Any) -> str:
    return value if isinstance(value, str) and value and not isinstance(value, Enum) else spelled(value)


def _choices(value: Any) -> str:
    return f" One of {', '.join(f'`{choice}`' for choice in type(value))}." if isinstance(value, Enum) else ""


def _objectives() -> str:
    """The keys of all objectives of this package, each with those that have it."""
    holders: dict[str, tuple[Key, list[str]]] = {}
    for name in options("objective"):
        config: Config = compose(["model=tiny", f"objective={name}"])
        for key in keys(config.objective, "objective."):
            holders.setdefault(key[0], (key, []))[1].append(name)
    rows = []
    for (name, item, value, meaning), held in holders.values():
        which = "all" if len(held) == len(options("objective")) else ", ".join(held)
        default = "cdt" if item.name == "name" else _default(value)
        rows.append([f"`{name}`", f"`{default}`", which, meaning + _choices(value)])
    return _table(("key", "default", "objectives", "what it is"), rows)


def _options(group: str) -> Iterator[list[str]]:
    """What the comment at the head of each file of ``conf/GROUP`` says first."""
    for name in options(group):
        comments = []
        for line in (conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
            if line.startswith("# @package"):
                continue
            if not line.startswith("# "):
                break
            comments.append(line[2:])
        yield [f"`{group}={name}`", " ".join(comments)]


def _about(section: Any) -> str:
    return (type(section).__doc__ or "").split("\n\n")[0].strip().replace("``", "`")


# Metrics


def metrics() -> str:
    named = {metric.name: metric for metric in [*_of_objectives(), *_elsewhere()]}
    others = [metric for metric in named.values() if metric.name not in {each.name for each in _of_objectives()}]
    parts = [METRICS]
    if others:
        parts += ["## Whatever is trained\n", _metrics(others)]
    for name in options("objective"):
        kind = objective_class(name)
        if kind.METRICS or kind.PASSES:
            passes = [_pass(each.metric, each.title) for each in kind.PASSES if each.metric not in named]
            parts += [f"## objective={name}\n", kind.about, _metrics([*kind.METRICS, *passes])]
    return "\n\n".join(parts)


def _of_objectives() -> list[Metric]:
    return [metric for name in options("objective") for metric in objective_class(name).METRICS]


def _elsewhere() -> Iterator[Metric]:
    """Those that another module of ours holds: one, or a list, a tuple or a mapping of them."""
    for file in sorted((ROOT / "nemo_cdt").rglob("*.py")):
        if "Metric(" not in file.read_text(encoding="utf-8") or file.parts[-2] in ("nemo", "megatron"):
            continue
        for value in vars(import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))).values():
            held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            yield from (each for each in held if isinstance(each, Metric))


def _pass(name: str, title: str) -> Metric:
    return Metric(name=name, title=f"{title}, s", explanation=f"the seconds of the {title} in a step", best="lowest")


def _metrics(found: Sequence[Metric]) -> str:
    best = {"lowest": "lower", "highest": "higher", None: ""}
    rows = [[f"`{m.name}`", m.title, _sentence(m.explanation), getattr(m, "unit", ""), best[m.best]] for m in found]
    return _table(("metric", "in the report", "what it is", "unit", "better"), rows)


# Commands


def commands() -> str:
    top = _printed(["--help"])
    verbs = re.findall(r"^    (\w+) +(\S.*)$", top, re.MULTILINE)
    rows = [[f"[`nemo-cdt {verb}`](#nemo-cdt-{verb})", _sentence(said)] for verb, said in verbs]
    parts = [COMMANDS, _table(("command", "what it does"), rows)]
    for verb, _ in verbs:
        shown = _train_help() if verb == "train" else _printed([verb, "--help"])
        parts.append(f"## nemo-cdt {verb}\n\n```text\n{shown.strip()}\n```")
    return "\n\n".join(parts)


def _printed(words: list[str]) -> str:
    """What a command prints, in lines of 100 characters."""
    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "100"
    try:
        with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
            cli.main(words)
    finally:
        del os.environ["COLUMNS"]
        os.environ |= {} if before is None else {"COLUMNS": before}
    return "\n".join(line.rstrip() for line in printed.getvalue().splitlines())


def _train_help() -> str:
    """The template that Hydra fills, with a link's words where it lists all groups and keys."""
    text = (conf_dir() / "config.yaml").read_text(encoding="utf-8")
    (template,) = re.findall(r"^    template: \|\n((?:      .*\n|\n)+)", text, re.MULTILINE)
    shown = re.sub(r"^      ", "", template, flags=re.MULTILINE)
    return shown.replace("$APP_CONFIG_GROUPS", "  (see the page on configuration)").replace(
        "$CONFIG", "  (see the page on configuration)"
    )


# A run's folder


def run_folder() -> str:
    ours = {name: CONTENTS.get(name, "") for name in [*CONTENTS, *sorted(OURS - CONTENTS.keys())]}
    return "\n\n".join(
        [RUN_FOLDER, _table(("name", "what it is"), [[f"`{n}`", _sentence(s)] for n, s in ours.items()])]
    )


# Markdown


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [[*head], ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text and text[0].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".")


RUN_GROUPS = {item.name for item in fields(Config) if item.default is MISSING}

CONFIGURATION = """\
# Configuration keys

A run is set on the command line: `GROUP=OPTION` chooses a file of values from `conf/`, and `KEY=VALUE` sets one key.
A default is what `nemo-cdt train model=tiny` has, or any run that names its model. The command `nemo-cdt train` alone
is `experiment=tiny`, which has values of its own. `nemo-cdt train --cfg job` prints the whole configuration of a run
and trains nothing. The schema is in `nemo_cdt/config/`, and Hydra refuses a key that is not in it.
"""
GROUPS = "The groups `cluster` and `prepare` are for `nemo-cdt plan` and `nemo-cdt prepare`. The others are a run's."
OBJECTIVE = """\
A key of another objective than the run's cannot be set. The strength of CDT's shift is `objective.beta`, or
`objective.rho` with `objective.normalization=relative`."""
CLUSTER = "These are for `nemo-cdt plan` alone. The defaults are those of `cluster=h100`."
ANALYZE = "These are the keys of `nemo-cdt analyze NAME KEY=VALUE`; `data=NAME` is short for `data.name=NAME`."
PREPARE = """\
These are the keys of `nemo-cdt prepare SET KEY=VALUE`; `conf/prepare/SET.yaml` sets some of them. With `alignment`
those of a source have `longmit.` or `longalpaca.` before them."""
FETCH = "These are the keys of `nemo-cdt fetch MODEL KEY=VALUE`."
INSPECT = "These are the keys of `nemo-cdt inspect DATA KEY=VALUE`."
METRICS = """\
# Metrics

Every step writes one line of JSON into `OUTPUT/metrics.jsonl`. The report draws the same figures. A figure whose name
begins with `val_` is written after a validation. [Analyze and evaluate](../guides/analyze-and-evaluate.md) says
which ones to look at first.
"""
COMMANDS = """\
# Commands

`nemo-cdt COMMAND --help` prints what is below. A mistake in a command is one line and exit code 2.
"""
RUN_FOLDER = """\
# A run's folder

A run writes into `output`, which is `runs/NAME` unless you set it. The documentation calls this folder OUTPUT. Names
that begin with a dot or with `nemo_log_` are the run's too. A run removes and replaces nothing else.
"""


def main() -> None:
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")
        print(REFERENCE / name)


if __name__ == "__main__":
    main()
