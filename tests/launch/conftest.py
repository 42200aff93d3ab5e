from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[2] / "launchers/examples"


@pytest.fixture
def is_golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Asserts that a text is that of a file in ``launchers/examples/``; ``--refresh-golden`` writes the files anew."""

    def check(name: str, text: str) -> None:
        if request.config.getoption("--refresh-golden"):
            (GOLDEN / name).write_text(text, encoding="utf-8")
        assert text == (GOLDEN / name).read_text(encoding="utf-8")

    return check
