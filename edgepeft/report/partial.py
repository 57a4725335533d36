"""What a run that was broken off had measured: a report that says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .gate import Gate, Report

#: Is given what makes the record of all that is measured so far, after each step; ``None`` where there is nothing yet.
Keep = Callable[[Callable[[], Any]], None]

#: The gate of a report that is not whole.
ENDED = "measured to the end"


def keep_nothing(make: Callable[[], Any]) -> None:
    """The ``keep`` of a caller who wants no partial report."""


class Partial:
    """The last of what a measurement has so far; nothing is made of it unless the run is broken off.

    Args:
        begun: Is called at the first step, when all that was asked for is known to be right.

    Example:
        >>> partial = Partial()
        >>> partial.keep(lambda: Report(kind="bench", title="Bench of b"))
        >>> partial.report("bench", "Ctrl-C").verdict
        <Verdict.INCONCLUSIVE: 'inconclusive'>
    """

    def __init__(self, begun: Callable[[], None] = lambda: None) -> None:
        self._begun: Callable[[], None] | None = begun
        self._make: Callable[[], Report | None] = lambda: None

    def keep(self, make: Callable[[], Report | None]) -> None:
        """Take what makes the report of all that is measured so far."""
        self._make = make
        begun, self._begun = self._begun, None
        if begun is not None:
            begun()

    def report(self, kind: str, why: str) -> Report:
        """What was kept, marked as partial: its first gate is *inconclusive*, so that it never passes.

        Args:
            kind: The stage, where nothing was kept.
            why: What broke the run off.
        """
        made = self._make()
        if made is None:
            made = Report(kind=kind, title=f"{kind} did not end", data={"measured": False})
        gate = Gate.undecided(ENDED, f"{why}; what is said here was measured until then, run it again")
        return replace(
            made,
            title=f"{made.title} (partial: {why})",
            gates=(gate, *made.gates),
            notes=(f"this report is partial: {why}", *made.notes),
            data={**made.data, "partial": why},
        )
