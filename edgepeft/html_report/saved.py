"""Reading back the JSON reports that ``validate``, ``bench``, ``check`` and ``quantize`` wrote."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..report.gate import Gate, Report, Table, Verdict
from ..strict_json import kind, read_json

#: A report of a large matrix of targets has some 10 MB; more is no report of ours.
MAX_REPORT_BYTES = 64 * 1024 * 1024

_ADVICE = "write it again with the command that made it"


@dataclass(frozen=True)
class SavedReport:
    """A report as it was read from a file.

    ``created`` is when it was written: what the file says, else the file's time.
    """

    report: Report
    path: Path
    created: datetime

    @property
    def kind(self) -> str:
        """The stage that measured: ``bench``, ``check``, ``validate``, …"""
        return self.report.kind

    @property
    def data(self) -> Mapping[str, Any]:
        """The stage's own record."""
        return self.report.data


def find_reports(folder: Path) -> list[Path]:
    """The JSON reports of a bundle (in its ``report`` folder) or of a folder of reports, by name.

    Files that are JSON but no report (a bundle's manifest, a tokenizer) are left out by their name or content.
    """
    inside = folder / "report"
    place = inside if inside.is_dir() else folder
    return sorted(path for path in place.glob("*.json") if path.is_file() and _looks_like_report(path))


def _looks_like_report(path: Path) -> bool:
    """Whether the first bytes name the keys that every report starts with."""
    with path.open("rb") as file:
        head = file.read(200)
    return b'"schema_version"' in head and b'"kind"' in head


def read_report(path: Path) -> SavedReport:
    """A saved report.

    Args:
        path: The ``.json`` that a command wrote.

    Returns:
        The report with its gates and tables.

    Raises:
        InputError: The file is not there, is no JSON, or is no report; the message says which key is wrong.

    Example:
        >>> read_report(Path("bundle/report/validate.json")).report.verdict  # doctest: +SKIP
        <Verdict.PASS: 'pass'>
    """
    raw = read_json(path, what="report", advice=_ADVICE, max_bytes=MAX_REPORT_BYTES)
    where = f"report {path}"
    if not isinstance(raw, dict) or not isinstance(raw.get("kind"), str) or not isinstance(raw.get("gates"), list):
        raise InputError(f"{path} is no report of edgepeft: it needs the keys kind and gates, found {_found(raw)}")
    version = raw.get("schema_version")
    if version != 1:
        raise InputError(f"{where} has schema_version {version!r:.40}; this edgepeft reads 1: {_ADVICE}")
    try:
        report = Report(
            kind=raw["kind"],
            title=str(raw.get("title") or raw["kind"]),
            gates=tuple(_gate(gate) for gate in raw["gates"]),
            tables=tuple(_table(table) for table in raw.get("tables", ())),
            notes=tuple(map(str, raw.get("notes", ()))),
            data=raw.get("data") or {},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where} does not fit this edgepeft ({type(error).__name__}: {error}): {_ADVICE}") from error
    return SavedReport(report, path, _created(raw.get("created"), path))


def read_reports(paths: Iterable[Path]) -> list[SavedReport]:
    """Several reports, oldest first."""
    return sorted((read_report(path) for path in paths), key=lambda saved: (saved.created, str(saved.path)))


def _gate(raw: Mapping[str, Any]) -> Gate:
    value, limit = raw["value"], raw["limit"]
    for number in (value, limit):
        if number is not None and (isinstance(number, bool) or not isinstance(number, (int, float))):
            raise TypeError(f"gate {raw['name']!r:.80} has {number!r:.40} where a number belongs")
        if number is not None and not math.isfinite(number):
            raise ValueError(f"gate {raw['name']!r:.80} has {number}")
    bound = raw.get("bound", "max")
    if bound not in {"max", "min"}:
        raise ValueError(f"gate {raw['name']!r:.80} has the bound {bound!r:.40}; max and min are known")
    return Gate.decided(
        str(raw["name"]), Verdict(raw["verdict"]), value, limit, str(raw["unit"]), str(raw.get("detail", "")), bound
    )


def _table(raw: Mapping[str, Any]) -> Table:
    return Table(str(raw["title"]), tuple(map(str, raw["columns"])), tuple(tuple(row) for row in raw["rows"]))


def _created(text: object, path: Path) -> datetime:
    if isinstance(text, str):
        try:
            found = datetime.fromisoformat(text)
        except ValueError as error:
            raise InputError(f"report {path}: created is {text!r:.40}, which is no time: {_ADVICE}") from error
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _found(raw: object) -> str:
    return ", ".join(map(str, list(raw)[:6])) or "nothing" if isinstance(raw, dict) else kind(raw)
