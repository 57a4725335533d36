"""The order of the tests' modules: those that take long first, so that of two processes neither is left alone at the end.

``seconds.json`` holds what the longest took in ``make test``; ``pytest --record-seconds`` writes it anew. The other modules
keep the random order that pytest-randomly gave them, and so do the tests within each module.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("seconds.json")
#: Modules that take less are not listed: their order does not change when the last process ends.
LISTED = 15.0
_taken: Counter[str] = Counter()


def recorded() -> dict[str, float]:
    """Seconds by module, as paths below the repository; the longest first."""
    found: dict[str, float] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def module_of(node_id: str) -> str:
    return node_id.partition("::")[0]


@pytest.hookimpl(trylast=True)  # after pytest-randomly, which shuffles
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    seconds = recorded()
    items.sort(key=lambda item: -seconds.get(module_of(item.nodeid), 0.0))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _taken[module_of(report.nodeid)] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--record-seconds") and not hasattr(session.config, "workerinput"):
        listed = {module: round(seconds) for module, seconds in _taken.most_common() if seconds >= LISTED}
        FILE.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
