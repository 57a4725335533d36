"""A report as JSON, Markdown and JUnit XML."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime

from ..json_text import finite_json
from .gate import Cell, Gate, Report, Table, Verdict

_MARKS = {Verdict.PASS: "✅ pass", Verdict.FAIL: "❌ fail", Verdict.INCONCLUSIVE: "❔ inconclusive"}

#: What XML 1.0 cannot hold at all, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_json(report: Report, created: datetime | None = None) -> str:
    """The report as JSON: schema version, kind, when it was created, title, verdict, gates, tables, notes and data.

    ``created`` is left out where it is not given.
    """
    value = {
        "schema_version": 1,
        "kind": report.kind,
        **({} if created is None else {"created": created.isoformat(timespec="seconds")}),
        "title": report.title,
        "verdict": report.verdict.value,
        "gates": [{**asdict(gate), "verdict": gate.verdict.value, "margin": gate.margin} for gate in report.gates],
        # A cell may be the NaN that is reported of a broken model.
        "tables": finite_json([asdict(table) for table in report.tables]),
        "notes": list(report.notes),
        "data": dict(report.data),
    }
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def format_cell(value: Cell) -> str:
    """A cell for people: three significant digits below 100, whole numbers above, a dash for what was not measured."""
    if value is None:
        return "–"
    if isinstance(value, float):
        if value == 0 or 0.001 <= abs(value) < 100:
            digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
            return f"{value:.{digits}f}"
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"
    return f"{value:,}" if isinstance(value, int) else value


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\r", " ").replace("\n", " ")


def table_to_markdown(table: Table) -> str:
    """The table alone, numbers to the right."""
    numeric = [
        all(not isinstance(row[i], str) for row in table.rows) and bool(table.rows) for i in range(len(table.columns))
    ]
    lines = [
        "| " + " | ".join(map(_escape, table.columns)) + " |",
        "|" + "|".join(" ---: " if right else " --- " for right in numeric) + "|",
        *("| " + " | ".join(_escape(format_cell(cell)) for cell in row) + " |" for row in table.rows),
    ]
    return "\n".join(lines) + "\n"


def gates_table(gates: Iterable[Gate], title: str = "Gates") -> Table:
    """Gates as a table that fits a pull request's 860 pixels, worst verdicts first; a detail may wrap, a number not."""
    order = [Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS]
    return Table(
        title,
        ("verdict", "gate", "value", "limit", "room", "detail"),
        tuple(
            (
                _MARKS[gate.verdict],
                gate.name,
                None if gate.value is None else f"{format_cell(gate.value)} {gate.unit}".strip(),
                gate.limit_text,
                None if gate.margin is None else f"{gate.margin:+.0%}",
                gate.detail,
            )
            for gate in sorted(gates, key=lambda gate: order.index(gate.verdict))
        ),
    )


def summary(report: Report) -> str:
    """The verdict and how many gates say what, in one line.

    Example:
        >>> summary(Report("check", "new", (Gate.holds("parity", True),)))
        '✅ pass: 1 gate passes'
    """
    if not report.gates:
        return "no gate was judged"
    counts = [
        (sum(gate.verdict is verdict for gate in report.gates), one, many)
        for verdict, one, many in (
            (Verdict.FAIL, "fails", "fail"),
            (Verdict.INCONCLUSIVE, "is inconclusive", "are inconclusive"),
            (Verdict.PASS, "passes", "pass"),
        )
    ]
    said = [
        f"{count} {'gate ' if count == 1 else 'gates '}{one if count == 1 else many}"
        for count, one, many in counts
        if count
    ]
    return f"{_MARKS[report.verdict]}: {', '.join(said)}"


def to_markdown(report: Report) -> str:
    """The report for people: the verdict in one line, what does not pass, then all else folded, notes last.

    GitHub and GitLab show it as a summary or comment of a pull request.
    """
    parts = [f"# {report.title}\n"]
    if report.gates:
        parts.append(f"**{summary(report)}**\n")
    bad, good = [gate for gate in report.gates if not gate.ok], [gate for gate in report.gates if gate.ok]
    if bad:
        parts.append(f"## What does not pass\n\n{table_to_markdown(gates_table(bad))}")
    if good:
        count = f"{len(good)} gate passes" if len(good) == 1 else f"{len(good)} gates pass"
        parts.append(_folded(count, table_to_markdown(gates_table(good))))
    parts += [_folded(table.title, table_to_markdown(table)) for table in report.tables]
    if report.notes:
        parts.append("\n".join(f"- {_escape(note)}" for note in report.notes) + "\n")
    return "\n".join(parts)


def _folded(title: str, body: str) -> str:
    """A part that opens with a click; Markdown inside needs the empty lines."""
    return f"<details><summary>{html.escape(title, quote=False)}</summary>\n\n{body}\n</details>\n"


def to_junit(report: Report) -> str:
    """The gates as one JUnit suite: a gate that fails is a ``<failure>``, an inconclusive one is ``<skipped>``.

    Skipped, because CI systems show it apart from both pass and failure and an ``<error>`` would be counted with the
    failures; a job that must not go on without a verdict stops on the exit code 3.
    """
    failures = sum(gate.verdict is Verdict.FAIL for gate in report.gates)
    skipped = sum(gate.verdict is Verdict.INCONCLUSIVE for gate in report.gates)
    counts = {"tests": str(len(report.gates)), "failures": str(failures), "errors": "0", "skipped": str(skipped)}
    root = ET.Element("testsuites", {"name": "edgepeft", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": f"edgepeft.{report.kind}", **counts})
    for gate in report.gates:
        case = ET.SubElement(
            suite, "testcase", {"classname": f"edgepeft.{report.kind}", "name": _xml(gate.name), "time": "0"}
        )
        message = _xml(gate.message)
        if gate.verdict is Verdict.FAIL:
            ET.SubElement(case, "failure", {"message": message, "type": "gate"}).text = message
        elif gate.verdict is Verdict.INCONCLUSIVE:
            ET.SubElement(case, "skipped", {"message": f"inconclusive: {message}"})
        else:
            ET.SubElement(case, "system-out").text = message
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
