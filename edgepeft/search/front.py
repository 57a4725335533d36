"""What a study found: its trials, and the front of those that nothing beats in accuracy, latency and size together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..report import write_reports
from ..report.gate import Report, Table


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    ``state`` is ``complete``, ``pruned`` (its training was broken off), ``failed`` (``why``) or ``running``. ``accuracy`` on the
    validation rows has its 95 % interval ``lower`` to ``upper``; ``p50_ms`` is the median of a run, ``mb`` what a device stores.
    """

    number: int
    state: str
    values: dict[str, Any]
    folder: str
    accuracy: float | None = None
    lower: float | None = None
    upper: float | None = None
    p50_ms: float | None = None
    mb: float | None = None
    on_front: bool = False
    why: str = ""


@dataclass(frozen=True)
class Found:
    """What a study found so far: ``front`` by accuracy, the best first, and all its trials; ``folder`` has the report."""

    name: str
    folder: Path
    storage: str
    front: tuple[TrialRow, ...]
    trials: tuple[TrialRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "folder": str(self.folder)}


def front_of(rows: Sequence[TrialRow]) -> set[int]:
    """Numbers of the trials that no other beats: as accurate, as fast and as small at least, and better in one of them."""
    done = [
        (row.number, (-row.accuracy, row.p50_ms, row.mb))
        for row in rows
        if row.accuracy is not None and row.p50_ms is not None and row.mb is not None
    ]
    return {
        number
        for number, mine in done
        if not any(all(a <= b for a, b in zip(theirs, mine, strict=True)) and theirs != mine for _, theirs in done)
    }


def tables(found: Found) -> tuple[Table, Table]:
    """The front, and all trials, with the axes that vary."""
    names = [
        name
        for name in dict.fromkeys(name for row in found.trials for name in row.values)
        if len({str(row.values.get(name)) for row in found.trials}) > 1
    ]

    def line(row: TrialRow) -> tuple[Any, ...]:
        values = (
            value if isinstance(value, int | float) else None if value is None else Path(str(value)).name
            for value in (row.values.get(name) for name in names)
        )
        accuracy = None if row.accuracy is None else f"{row.accuracy:.3f} [{row.lower:.3f}, {row.upper:.3f}]"
        return (row.number, *values, accuracy, row.p50_ms, row.mb)

    columns = ("trial", *names, "accuracy [95 %]", "p50 ms", "MB")
    return (
        Table(
            f"Front of {found.name}: nothing is as accurate, as fast and as small",
            columns,
            tuple(map(line, found.front)),
        ),
        Table(
            f"Trials of {found.name}",
            (*columns, "state"),
            tuple((*line(row), row.why or row.state) for row in found.trials),
        ),
    )


def write_report(found: Found) -> None:
    """Write ``report/search.json`` (with Markdown and JUnit) into the study's folder.

    Raises:
        InputError: It cannot be written.
    """
    report = Report("search", f"Search {found.name}", (), tables(found), (), found.as_dict())
    write_reports(found.folder / "report", "search", report)
