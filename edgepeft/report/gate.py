"""What a gate says: the neutral types that measuring rooms produce and the report room prints.

They live here, below both, because ``bench``, ``validate`` and ``report`` are siblings that do not import each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

Cell = str | float | int | None


class Verdict(StrEnum):
    """The three things a gate can say."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"

    @property
    def exit_code(self) -> int:
        """The process exit code: 0 pass, 1 fail, 3 inconclusive (2 is kept for wrong calls)."""
        return {"pass": 0, "fail": 1, "inconclusive": 3}[self.value]


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """``fail`` if any fails, else ``inconclusive`` if any is, else ``pass`` (also for no verdicts at all)."""
    seen = set(verdicts)
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        if verdict in seen:
            return verdict
    return Verdict.PASS


@dataclass(frozen=True)
class Gate:
    """One judged number.

    ``limit`` is the largest value allowed, or with ``bound="min"`` the smallest; both share ``unit`` (``ms``, ``MB``,
    ``ratio``, ``share``). ``detail`` says how the verdict came about, in one line.
    """

    name: str
    verdict: Verdict
    value: float | None
    limit: float | None
    unit: str
    detail: str = ""
    bound: Literal["max", "min"] = "max"

    @property
    def ok(self) -> bool:
        """Whether the verdict is ``pass``."""
        return self.verdict is Verdict.PASS

    @property
    def margin(self) -> float | None:
        """Room left as a share of the limit (negative: over it); ``None`` without a value or a limit."""
        if self.value is None or not self.limit:
            return None
        room = self.limit - self.value if self.bound == "max" else self.value - self.limit
        return room / abs(self.limit)


@dataclass(frozen=True)
class Table:
    """Columns and rows to print; ``None`` is a value that was not measured."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: a row has {len(row)} cells, expected {len(self.columns)}: {row!r}"
                )


@dataclass(frozen=True)
class Report:
    """What the report room writes: gates and tables for people, ``data`` (JSON values) for machines.

    ``kind`` is the stage that measured (``bench``, ``check``, ``validate``); it names the JUnit suite and tells a
    reader of the JSON file which schema ``data`` has.
    """

    kind: str
    title: str
    gates: tuple[Gate, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The overall verdict of the gates."""
        return overall(gate.verdict for gate in self.gates)
