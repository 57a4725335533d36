"""What the tests of PEFT's methods measure: recorded in ``docs/methods.json``, from which ``docs/methods.md`` is written.

A figure is the smallest step of ``STEPS`` that no case of the method exceeds, so that another machine records the same.
``pytest tests/model --record-methods -m ""`` records; every other run fails where it measures more than ten times as much.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

PATH = Path(__file__).parents[1] / "docs" / "methods.json"
#: max |difference| from PEFT, relative to the largest logit where that is above 1.
STEPS = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4)
#: PEFT type, base (``bert`` or ``llama``), way to ship (``swap``, ``merge`` or ``bake``).
Key = tuple[str, str, str]


def step(difference: float, before: float | None = None) -> float:
    """The step that ``difference`` is recorded as: the one of ``before`` where that still says it, so that records stay."""
    if before is not None and before / 10 < difference <= before:
        return before
    return next(each for each in STEPS if difference <= each)


def recorded() -> dict[Key, tuple[float, str]]:
    """What ``docs/methods.json`` holds: the figure and the test that measured it."""
    found = json.loads(PATH.read_text(encoding="utf-8")) if PATH.is_file() else {}
    return {
        (method, base, way): (entry["at_most"], entry["test"])
        for method, bases in found.items()
        for base, ways in bases.items()
        for way, entry in ways.items()
    }


class Figures:
    """Collects what this session measured, by method, base and way."""

    def __init__(self, *, record: bool) -> None:
        self.record = record
        self.known = recorded()
        self.found: dict[Key, tuple[float, str]] = {}

    def note(self, key: Key, difference: float, test: str) -> None:
        worst = max(difference, self.found.get(key, (0.0, ""))[0])
        self.found[key] = (worst, test)
        if self.record:
            return
        assert key in self.known, f"{key} is not in {PATH.name}: record it with --record-methods"
        limit, by = self.known[key]
        assert difference <= 10 * limit, (
            f"{key}: {difference:.1e}, {PATH.name} says at most {limit:.0e}: record it again"
        )
        assert by == test, f"{key}: {PATH.name} names {by}, this is {test}: record it again"

    def write(self, keys: Iterable[Key]) -> None:
        """Record what was measured over what was known; only ``keys`` stay."""
        known = recorded()
        mine = {key: (step(worst, known.get(key, (None,))[0]), test) for key, (worst, test) in self.found.items()}
        entries = {**known, **mine}
        written: dict[str, dict[str, dict[str, dict[str, object]]]] = {}
        for key in sorted(set(keys) & set(entries)):
            method, base, way = key
            at_most, test = entries[key]
            written.setdefault(method, {}).setdefault(base, {})[way] = {"at_most": at_most, "test": test}
        PATH.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
