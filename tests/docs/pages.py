"""The documentation as tests read it: its pages, and the commands, links and blocks of a page."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "docs/reference"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launchers/README.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def read(name: str) -> str:
    """A page with what it includes."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r'^--8<-- "(.*)"$', lambda found: read(found[1]), text, flags=re.MULTILINE)


def commands(text: str) -> Iterator[str]:
    """Those of blocks of the shell, each on one line; of a pipe the parts."""
    for block in re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield from (part.strip() for part in line.split(" | "))


def words(command: str) -> list[str]:
    return shlex.split(command)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def links(text: str) -> list[str]:
    """Targets within the repository."""
    found = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", without_code(text))
    return [target for target in found if not target.startswith("https://")]


def anchors(text: str) -> set[str]:
    """As GitHub and mkdocs name headings."""
    headings = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def broken(link: str, page: str) -> bool:
    """Whether a link of ``page`` leads nowhere."""
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    if not target.exists():
        return True
    return bool(anchor) and anchor not in anchors(read(str(target.resolve().relative_to(ROOT))))


def blocks(text: str) -> list[str]:
    """Paragraphs, lists' items, tables and headings, in order."""
    found: list[str] = []
    for part in re.split(r"\n\s*\n|\n(?=- )", without_code(text)):
        found += [part.strip()] if part.strip() else []
    return found


RESULTS = r"benchmarks/results/\w[\w.-]*\.json"
FIGURE = r"\d[\d.,]*\s?(?:%|s\b|GiB\b|TFLOP|times\b)|\d[\d.]* (?:above|below)\b"


def unsupported(text: str) -> list[str]:
    """Blocks with a figure, where neither they nor a neighbour of the same section name a file of results."""
    found, wrong = blocks(text), []
    for place, block in enumerate(found):
        before = found[place - 1] if place and not block.startswith("#") else ""
        after = next(iter(found[place + 1 : place + 2]), "")
        beside = [block, *(other for other in (before, after) if not other.startswith("#"))]
        if re.search(FIGURE, block) and not any(re.search(RESULTS, other) for other in beside):
            wrong.append(block)
    return wrong
