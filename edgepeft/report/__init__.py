"""Reports: JSON for machines, Markdown for people, JUnit for CI."""

from __future__ import annotations

from .partial import Keep, Partial, keep_nothing
from .render import format_cell, gates_table, summary, table_to_markdown, to_json, to_junit, to_markdown
from .write import ReportFiles, replacing_report, write_reports

__all__ = [
    "Keep",
    "Partial",
    "ReportFiles",
    "format_cell",
    "gates_table",
    "keep_nothing",
    "replacing_report",
    "summary",
    "table_to_markdown",
    "to_json",
    "to_junit",
    "to_markdown",
    "write_reports",
]
