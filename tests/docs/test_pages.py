"""What the pages say is there: links, files, tests, keys, results; the README is one screen."""

import json
import re
from dataclasses import fields

import pytest

from nemo_cdt.config import Config, walk
from nemo_cdt.config.launcher import Launcher, LauncherName, keys_of
from nemo_cdt.objectives import names, objective_class
from tests.docs.pages import NAMES, RESULTS, ROOT, broken, links, read, unsupported

README = read("README.md")
ROOMS = r"^\| (`[\w/]+/`.*?) \| .* \|$"
WRITTEN = [name for name in NAMES if not re.match("docs/(reference|contributing)|CONTRIBUTING|benchmarks", name)]
"""Those that speak of the keys of runs."""


def test_the_readme_has_at_most_120_lines():
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name):
    assert [link for link in links(read(name)) if broken(link, name)] == []


def test_a_link_that_leads_nowhere_is_noticed():
    assert links("[a](b.md) [c](https://d) `[e](f)`")[:1] == ["b.md"]
    assert broken("docs/nothing.md", "README.md")
    assert broken("docs/guides/slurm.md#nothing", "README.md")
    assert not broken("docs/guides/slurm.md#your-site", "README.md")


@pytest.mark.parametrize("name", ["README.md", "docs/concepts/architecture.md"])
def test_the_map_names_every_room_and_nothing_else(name):
    cells = re.findall(ROOMS, read(name), re.MULTILINE)
    packages = {f"nemo_cdt/{path.parent.name}/" for path in ROOT.glob("nemo_cdt/*/__init__.py")}

    assert {room for cell in cells for room in re.findall(r"`([\w/]+/)`", cell)} == packages | {
        f"{name}/" for name in ("conf", "recipes", "launchers", "benchmarks", "tests", "docs")
    }
    assert len(cells) == 12


@pytest.mark.parametrize("name", NAMES)
def test_every_file_and_test_that_is_named_exists(name):
    text = read(name)
    files = re.findall(r"`((?:nemo_cdt|tests|benchmarks|conf|recipes|launchers|docs)/[\w./-]*)", text)
    tests = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text)

    named = [file.rstrip(":.") for file in files if not re.search(r"[A-Z]{3}", file.replace("README", ""))]  # NAME, SET
    assert [file for file in named if not (ROOT / file).exists()] == []
    assert [(file, test) for file, test in tests if f"def {test}(" not in (ROOT / file).read_text("utf-8")] == []
    assert text.count("::test_") == len(tests)


@pytest.mark.parametrize("name", WRITTEN)
def test_every_key_that_is_named_is_in_the_schema(name):
    known = {key for key, _ in walk(Config())}
    known |= {f"objective.{key.name}" for one in names() for key in fields(objective_class(one).settings_class)}
    groups = "objective|parallel|trainer|optim|lora|launcher|model|init|export|longppl"  # data is also an analysis's
    named = set(re.findall(rf"(?<![\w.`/-])`?((?:{groups})\.[a-z_][a-z_.0-9]*[a-z_0-9])", read(name)))
    named = {key for key in named if not re.search(r"\.(py|yaml|md|json)$|^launcher\.env\.", key)}

    assert named - known == set()


@pytest.mark.parametrize("name", [LauncherName.slurm, LauncherName.kubernetes])
def test_every_key_of_a_launcher_is_in_its_guide_and_no_other(name):
    page = read(f"docs/guides/{name}.md")
    rows = re.findall(r"^\| [\w ]+ \| (`.*) \|$", page[page.index("\n## Keys") :], re.MULTILINE)

    assert {key for keys in rows for key in re.findall(r"`(\w+)`", keys)} == keys_of(name)
    assert keys_of(name) < {key.name for key in fields(Launcher)}


@pytest.mark.parametrize("name", ["README.md", *(name for name in NAMES if name.startswith("docs/results/"))])
def test_every_figure_stands_beside_its_file_of_results(name):
    assert unsupported(between_set_ups(read(name))) == []


def between_set_ups(text: str) -> str:
    """Without the README's set-up, whose minutes and megabytes are no measurements."""
    return re.sub(r"^## Install.*?(?=^## )", "", text, flags=re.MULTILINE | re.DOTALL)


def test_a_figure_without_its_file_is_noticed():
    with_file = "It took 3.1 s (`benchmarks/results/a.json`)."

    assert unsupported(f"# Speed\n\n{with_file}\n\nIt took 3.1 s.\n\nAnd 90 GiB.") == ["And 90 GiB."]
    assert unsupported(f"## One\n\n{with_file}\n\n## Two\n\n| a | 5 % |") == ["| a | 5 % |"]
    assert unsupported(f"{with_file}\n\n| a | 5 % |") == []


def test_every_file_of_results_that_is_named_exists():
    named = {file for name in NAMES for file in re.findall(RESULTS, read(name))}
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "benchmarks/results").iterdir()}

    assert {file for file in named if "_DEVICE_" not in file} - there == set()
    assert len(named) > 20


def rows_of(name: str, header: str) -> list[list[str]]:
    """The cells of the table whose head begins so."""
    table = read(name).split(header, 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def test_the_table_of_speed_is_what_was_measured():
    files = ("speed_h100_80gb_hbm3_2026-11-25", "speed_h200_2026-11-26")
    measured = {
        (f"{row['seq_length']:,}", f"{row['recompute']}, {row['detection_recompute']}"): row
        for file in files
        for row in json.loads((ROOT / f"benchmarks/results/{file}.json").read_text(encoding="utf-8"))["rows"]
        if "cdt_s" in row
    }
    shown = rows_of("docs/results/speed-and-memory.md", "\n| tokens | recompute, in detection")

    assert len(shown) == 11
    for tokens, recompute, plain, cdt, ratio, floor, shift, mfu in shown:
        row = measured[tokens, recompute]
        seconds = [row[key]["median"] for key in ("plain_s", "cdt_s", "delta_s")]
        expected = [*seconds[:2], row["ratio"], row["floor"], 100 * seconds[2] / seconds[1], 100 * row["cdt_mfu"]]
        for text, value in zip((plain, cdt, ratio, floor, shift, mfu), expected, strict=True):
            number = text.rstrip(" s%")
            assert float(number) == pytest.approx(value, abs=0.6 * 10 ** -len(number.partition(".")[2])), (tokens, text)


def test_the_table_of_layouts_is_what_was_measured():
    rows = json.loads((ROOT / "benchmarks/results/layouts_h100_x2_2026-11-25.json").read_text(encoding="utf-8"))["rows"]
    measured = {(row["name"], row["seq_length"]): row for row in rows}
    keys = ("threshold_relative_difference", "reduced_train_loss_relative_difference")
    shown = rows_of("docs/results/layouts.md", "\n| layout | mask, 8K")

    assert len(shown) == 15
    for layout, *cells in shown:
        for length, (mask, *others) in ((8192, cells[:3]), (32768, cells[3:])):
            row = measured[renamed(layout), length]
            assert float(mask.rstrip(" %")) == pytest.approx(100 * row["mask_agreement"], abs=6e-4), layout
            assert others == [f"{row[key]:.0e}".replace("e-0", "e-") for key in keys], layout


def renamed(layout: str) -> str:
    """A layout as the file has it."""
    if layout.startswith("one GPU"):
        return layout
    bare = layout.removeprefix("packed, ")
    return f"{bare} packed" if layout != bare else layout.replace(", distributed optimizer", "").replace(",", "")
