import logging
from collections.abc import Iterator

import pytest

from tests.ranks import start_server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--refresh-golden", action="store_true", help="write what is rendered now into tests/**/golden")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts NeMo, a command or a cluster is slow, and known by what its module imports."""
    for item in items:
        module, file = item.module.__name__, vars(item.module)  # type: ignore[attr-defined]
        names = {name for name, each in file.items() if getattr(each, "__name__", "") in ("tests.jobs", "subprocess")}
        if names or "on_ranks" in file or module.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
        if module.startswith("tests.launch.slurm.test_cluster"):
            item.add_marker(pytest.mark.slurm)
    if any("on_ranks" in vars(item.module) for item in items):  # type: ignore[attr-defined]
        start_server()


SLOW = (
    "tests.launch.",
    "tests.fuzz.",
    "tests.analysis.",
    "tests.prepare.",
    "tests.evaluation.",
    "tests.test_nothing_lost",
    "tests.test_wheel",
    "tests.utils.test_reading",
    "tests.benchmarks.test_effect",
    "tests.benchmarks.test_benchmarks",
    "tests.utils.test_lock",
)


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command that an earlier test ran in this process has kept our log to itself; NeMo-Run mutes all others'."""
    ours = logging.getLogger("nemo_cdt")
    monkeypatch.setattr(ours, "propagate", True)
    level = ours.level
    ours.setLevel(logging.INFO)
    yield
    ours.setLevel(level)
