"""A report as JSON, Markdown and JUnit XML."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import asdict
from datetime import datetime

from .gate import Cell, Gate, Report, Table, Verdict

_MARKS = {Verdict.PASS: "✅ pass", Verdict.FAIL: "❌ fail", Verdict.INCONCLUSIVE: "❔ inconclusive"}

#: What XML 1.0 cannot hold at all, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_json(report: Report, created: datetime | None = None) -> str:
    """The report as JSON: ``schema_version``, ``kind``, ``created``, ``title``, ``verdict``, ``gates``, ``tables``, ``notes`` and ``data``.

    ``created`` is left out where it is not given.
    """
    value = {
        "schema_version": 1,
        "kind": report.kind,
        **({} if created is None else {"created": created.isoformat(timespec="seconds")}),
        "title": report.title,
        "verdict": report.verdict.value,
        "gates": [{**asdict(gate), "verdict": gate.verdict.value, "margin": gate.margin} for gate in report.gates],
        "tables": [asdict(table) for table in report.tables],
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


def gates_table(gates: tuple[Gate, ...]) -> Table:
    """The gates as a table, worst verdicts first."""
    order = [Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS]
    return Table(
        "Gates",
        ("verdict", "gate", "value", "limit", "unit", "margin", "detail"),
        tuple(
            (
                _MARKS[gate.verdict],
                gate.name,
                gate.value,
                gate.limit_text,
                gate.unit,
                None if gate.margin is None else f"{gate.margin:+.0%}",
                gate.detail,
            )
            for gate in sorted(gates, key=lambda gate: order.index(gate.verdict))
        ),
    )


def to_markdown(report: Report) -> str:
    """The report for people: verdict, gates, tables, notes."""
    parts = [f"# {report.title}\n", f"**{_MARKS[report.verdict]}**\n"] if report.gates else [f"# {report.title}\n"]
    tables = (gates_table(report.gates), *report.tables) if report.gates else report.tables
    for table in tables:
        parts.append(f"## {table.title}\n")
        parts.append(table_to_markdown(table))
    if report.notes:
        parts.append("\n".join(f"- {_escape(note)}" for note in report.notes) + "\n")
    return "\n".join(parts)


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
