"""Writing reports so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .gate import Report
from .render import to_json, to_junit, to_markdown


@dataclass(frozen=True)
class ReportFiles:
    """Where a report was written."""

    json: Path
    markdown: Path
    junit: Path


def write_reports(folder: str | Path, stem: str, report: Report) -> ReportFiles:
    """Write ``<stem>.json``, ``<stem>.md`` and ``<stem>.junit.xml`` into ``folder``, made if needed.

    Each file is replaced in one step: a second run overwrites, a killed one leaves the old file whole. Raises
    :class:`InputError` where the folder cannot be written.
    """
    if not stem or Path(stem).name != stem:
        raise InputError(f"{stem!r} cannot name a report: use a plain file name without a suffix")
    folder = Path(folder)
    files = ReportFiles(folder / f"{stem}.json", folder / f"{stem}.md", folder / f"{stem}.junit.xml")
    # All texts first: a report that cannot be rendered replaces nothing.
    texts = {files.json: to_json(report), files.markdown: to_markdown(report), files.junit: to_junit(report)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            _replace(path, text)
    except OSError as error:
        raise InputError(f"cannot write the report to {folder}: {error.strerror or error}") from error
    return files


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files for the owner alone; a report is for CI's other users too.
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
