"""mkdocs builds the site without a warning."""

import subprocess
import sys

from tests.docs.pages import ROOT


def build(site, config=ROOT / "mkdocs.yml"):
    words = ["-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", str(config), "--site-dir", str(site)]
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)


def test_the_site_is_built_whole(tmp_path):
    done = build(tmp_path)

    assert done.returncode == 0, done.stderr
    pages = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in (ROOT / "docs").rglob("*.md")}
    made = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("index.html")}
    assert {page.removesuffix("index") or "." for page in pages} == made
    assert "Add an objective" in (tmp_path / "contributing/index.html").read_text(encoding="utf-8")


def test_the_site_loads_nothing_from_elsewhere(tmp_path):
    build(tmp_path)

    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'src="http' not in page
    assert "fonts.googleapis" not in page
