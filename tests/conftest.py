import logging
from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--refresh-golden", action="store_true", help="write what is rendered now into tests/**/golden")


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command that an earlier test ran in this process has kept our log to itself; NeMo-Run mutes all others'."""
    ours = logging.getLogger("nemo_cdt")
    monkeypatch.setattr(ours, "propagate", True)
    level = ours.level
    ours.setLevel(logging.INFO)
    yield
    ours.setLevel(level)
