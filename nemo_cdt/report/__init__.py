"""A finished (or killed) run as one HTML file that needs nothing else: no network, no folder beside it."""

from pathlib import Path

import jinja2

from nemo_cdt.report import heatmap, plots, summary
from nemo_cdt.report.run import Run, read_run
from nemo_cdt.report.verdict import verdict
from nemo_cdt.utils.atomic_write import atomic_write
from nemo_cdt.utils.reading import valid


def write_report(run: Path) -> Path:
    """Writes ``run/report.html``, whole or not at all, and returns its path.

    ``run`` holds ``config.yaml`` and ``metrics.jsonl``, and may hold ``baseline/``, ``sample.json`` and
    ``versions.json``; ValueError where it is no run.
    """
    page = valid(render(read_run(Path(run)), Path(run)))
    path = Path(run) / "report.html"
    atomic_write(path, page)
    return path


def render(run: Run, folder: Path) -> str:
    """The page's HTML, of the run in ``folder``. Everything a run holds is escaped: tokens contain ``<``."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["number"] = summary.number
    return environment.get_template("page.html.j2").render(
        run=run,
        verdict=verdict(run),
        headline=summary.headline(run),
        facts=summary.facts(run),
        command=summary.again(run, folder),
        notice=summary.notice(run),
        table=summary.table(run),
        pictures=plots.pictures(run),
        stretches=heatmap.stretches(run.sample) if run.sample else [],
        types=heatmap.type_table(run.sample) if run.sample else [],
        type_names=heatmap.TYPE_NAMES,
        meanings=heatmap.MEANINGS,
        shades=heatmap.SHADES,
    )
