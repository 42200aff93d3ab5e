import logging

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--refresh-golden", action="store_true", help="write what is rendered now into tests/**/golden")


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that an earlier test ran in this process has kept our log to itself."""
    monkeypatch.setattr(logging.getLogger("nemo_cdt"), "propagate", True)
