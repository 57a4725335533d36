"""One HTML page from saved reports and bundles: a file that needs nothing else, for people to look at."""

from __future__ import annotations

from .page import HtmlReport, write_html_report
from .saved import SavedReport, find_reports, read_report

__all__ = ["HtmlReport", "SavedReport", "find_reports", "read_report", "write_html_report"]
