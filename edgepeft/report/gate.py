"""What a gate says: the types that measuring rooms produce and the report room prints.

A verdict is decided here and nowhere else. What prints one reads it from the :class:`Gate`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from ..html_table import html_table

Cell = str | float | int | None
#: Which side of a limit is allowed: below the largest value, or above the smallest.
Bound = Literal["max", "min"]


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


def judge(lower: float, upper: float, limit: float, bound: Bound = "max") -> Verdict:
    """What an interval says of a limit: the one place where an interval becomes a verdict.

    Args:
        lower: Lower end of the interval, in the limit's unit.
        upper: Upper end of the interval.
        limit: The largest value allowed, or with ``bound="min"`` the smallest.
        bound: Which side of the limit is allowed.

    Returns:
        ``pass`` where the whole interval is on the allowed side, ``fail`` where it is on the other, else
        ``inconclusive``. An end that is NaN decides nothing.

    Example:
        >>> judge(0.98, 1.04, 1.10)
        <Verdict.PASS: 'pass'>
    """
    if bound == "max":
        passed, failed = upper < limit, lower > limit
    else:
        passed, failed = lower >= limit, upper < limit
    if passed:
        return Verdict.PASS
    return Verdict.FAIL if failed else Verdict.INCONCLUSIVE


@dataclass(frozen=True)
class Gate:
    """One judged number, or one judged fact.

    Made by the constructors below, which compare: no other code sets a verdict. ``limit`` is the largest value allowed,
    or with ``bound="min"`` the smallest; both share ``unit`` (``ms``, ``MB``, ``ratio``, ``share``). ``value`` is
    ``None`` where nothing was measured, and where what was measured is not a finite number: then ``detail`` says so and
    the gate fails. ``detail`` says in one line how the verdict came about.

    Raises:
        ValueError: For a ``value`` that is NaN or infinite. The constructors turn these into a failed gate.
    """

    name: str
    verdict: Verdict
    value: float | None
    limit: float | None
    unit: str
    detail: str = ""
    bound: Bound = "max"

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"gate {self.name!r}: value {self.value} is not a finite number; use Gate's constructors")

    @classmethod
    def at_most(
        cls,
        name: str,
        value: float | None,
        limit: float,
        unit: str,
        detail: str = "",
        *,
        best: float | None = None,
        broken: str = "",
    ) -> Gate:
        """A number that may not exceed a limit.

        Args:
            name: What is judged, for example ``p50 fp32/a 1x32``.
            value: The number, in ``unit``; ``None`` where it was not measured, which never passes.
            limit: The largest value allowed.
            unit: Unit of both.
            detail: How the number came about.
            best: The smallest value that the measurement leaves open. A value over the limit fails only where ``best``
                is over it too, and is inconclusive otherwise. By default the value itself.
            broken: Why the gate fails whatever the number is, for example that outputs were not finite.

        Returns:
            ``fail`` for NaN and infinity, always.

        Example:
            >>> Gate.at_most("peak RSS fp32", 210.0, 250.0, "MB").verdict
            <Verdict.PASS: 'pass'>
            >>> Gate.at_most("p50", 16.0, 15.0, "ms", best=14.0).verdict
            <Verdict.INCONCLUSIVE: 'inconclusive'>
            >>> Gate.at_most("parity", float("nan"), 1e-4, "logit").verdict
            <Verdict.FAIL: 'fail'>
        """
        return cls._against(name, value, limit, unit, detail, "max", best, broken)

    @classmethod
    def at_least(
        cls,
        name: str,
        value: float | None,
        limit: float,
        unit: str,
        detail: str = "",
        *,
        best: float | None = None,
        broken: str = "",
    ) -> Gate:
        """A number that may not fall below a limit: as :meth:`at_most`, with ``best`` the largest value left open."""
        return cls._against(name, value, limit, unit, detail, "min", best, broken)

    @classmethod
    def holds(cls, name: str, condition: bool, detail: str = "") -> Gate:
        """A fact without a number: ``pass`` where ``condition`` holds, else ``fail``.

        Example:
            >>> Gate.holds("base restored bit for bit", False).verdict
            <Verdict.FAIL: 'fail'>
        """
        return cls(name, Verdict.PASS if condition else Verdict.FAIL, None, None, "", detail)

    @classmethod
    def undecided(cls, name: str, detail: str) -> Gate:
        """``inconclusive``: what would decide it was not measured, and ``detail`` says why."""
        return cls(name, Verdict.INCONCLUSIVE, None, None, "", detail)

    @classmethod
    def whole(cls, name: str, gates: Iterable[Gate], detail: str = "") -> Gate:
        """Several gates as one: see :func:`overall`. Its ``detail`` names those that do not pass, else it is ``detail``."""
        judged = tuple(gates)
        # A gate without a number says in its detail what to do.
        bad = [
            f"{gate.name}: {gate.detail}" if gate.value is None and gate.detail else gate.name
            for gate in judged
            if not gate.ok
        ]
        return cls(name, overall(gate.verdict for gate in judged), None, None, "", "; ".join(bad) or detail)

    @classmethod
    def within(
        cls,
        name: str,
        estimate: float,
        interval: tuple[float, float],
        limit: float,
        unit: str,
        detail: str = "",
        bound: Bound = "max",
    ) -> Gate:
        """An estimate judged by its interval ``(lower, upper)``; see :func:`judge`."""
        return cls.decided(name, judge(*interval, limit, bound), estimate, limit, unit, detail, bound)

    @classmethod
    def decided(
        cls,
        name: str,
        verdict: Verdict,
        value: float | None,
        limit: float | None = None,
        unit: str = "",
        detail: str = "",
        bound: Bound = "max",
    ) -> Gate:
        """A verdict that :func:`judge` gave, with the number to show beside it.

        For what is not one comparison: rounds that stop when all is decided.
        """
        if value is not None and not math.isfinite(value):
            return cls(name, Verdict.FAIL, None, limit, unit, _joined(f"{value} is not a finite number", detail), bound)
        return cls(name, verdict, value, limit, unit, detail, bound)

    @classmethod
    def _against(
        cls,
        name: str,
        value: float | None,
        limit: float,
        unit: str,
        detail: str,
        bound: Bound,
        best: float | None,
        broken: str,
    ) -> Gate:
        def kept(number: float) -> bool:
            return number <= limit if bound == "max" else number >= limit

        missed = Verdict.INCONCLUSIVE if best is not None and kept(best) else Verdict.FAIL
        verdict = Verdict.PASS if value is not None and kept(value) else missed
        if broken:
            verdict, detail = Verdict.FAIL, _joined(broken, detail)
        return cls.decided(name, verdict, value, limit, unit, detail, bound)

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

    @property
    def limit_text(self) -> str | None:
        """The limit with its side, ``≤ 35``; ``None`` without one."""
        return None if self.limit is None else f"{'≤' if self.bound == 'max' else '≥'} {self.limit:g}"

    @property
    def message(self) -> str:
        """Value, limit and detail in one line."""
        limit = "" if self.limit is None else f", limit {self.limit_text} {self.unit}"
        value = "" if self.value is None else f"{self.value:.4g} {self.unit}"
        return ": ".join(filter(None, (f"{value}{limit}".strip(", "), self.detail)))


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))


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

    def _repr_html_(self) -> str:
        """What notebooks show: the verdict, the gates and the tables."""
        gates = [(gate.verdict.value, gate.name, gate.value, gate.limit, gate.unit) for gate in self.gates]
        parts = [
            html_table(f"{self.title}: {self.verdict.value}", ("verdict", "gate", "value", "limit", "unit"), gates)
        ]
        parts += [html_table(table.title, table.columns, table.rows) for table in self.tables]
        return "".join(parts)

    @property
    def verdict(self) -> Verdict:
        """The overall verdict of the gates."""
        return overall(gate.verdict for gate in self.gates)
