"""What a run that was broken off had measured: a report that says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .gate import Gate, Report

#: Is given what makes the report of all that is measured so far, after each step of a measurement.
Keep = Callable[[Callable[[], Report]], None]

#: The gate of a report that is not whole.
ENDED = "measured to the end"


def keep_nothing(report: Callable[[], Report]) -> None:
    """The ``keep`` of a caller who wants no partial report."""


class Partial:
    """Keeps the last of what it is given; nothing is made of it unless the run is broken off.

    Example:
        >>> partial = Partial()
        >>> partial.keep(lambda: Report(kind="bench", title="Bench of b"))
        >>> partial.report("bench", "Ctrl-C").verdict
        <Verdict.INCONCLUSIVE: 'inconclusive'>
    """

    def __init__(self) -> None:
        self._make: Callable[[], Report] | None = None

    def keep(self, report: Callable[[], Report]) -> None:
        """Take what makes the report of all that is measured so far."""
        self._make = report

    def report(self, kind: str, why: str) -> Report:
        """What was kept, marked as partial: its first gate is *inconclusive*, so that it never passes.

        Args:
            kind: The stage, where nothing was kept.
            why: What broke the run off.
        """
        made = Report(kind=kind, title=f"{kind} did not end", notes=("nothing was measured yet",))
        if self._make is not None:
            made = self._make()
        gate = Gate.undecided(ENDED, f"{why}: what follows is what was measured until then; run it again")
        return replace(
            made,
            title=f"{made.title} (partial: {why})" if self._make is not None else made.title,
            gates=(gate, *made.gates),
            notes=(f"partial report: {why}", *made.notes),
            data={**made.data, "partial": why},
        )
