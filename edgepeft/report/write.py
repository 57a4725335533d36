"""Writing reports so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..errors import InputError, TargetError, UnknownAdapterError
from .gate import Gate, Report
from .render import to_json, to_junit, to_markdown


@dataclass(frozen=True)
class ReportFiles:
    """Where a report was written."""

    json: Path
    markdown: Path
    junit: Path

    @classmethod
    def of(cls, folder: Path, stem: str) -> ReportFiles:
        """The files of a report called ``stem`` in ``folder``."""
        return cls(folder / f"{stem}.json", folder / f"{stem}.md", folder / f"{stem}.junit.xml")


@contextmanager
def replacing_report(folder: str | Path, stem: str) -> Iterator[None]:
    """Measure inside this: where that breaks, an earlier report of the same name is replaced by one that says so.

    A "pass" that stays on disk would be taken for the verdict on what is there now. A call that is wrong
    (:class:`InputError`, :class:`TargetError`, :class:`UnknownAdapterError`) says nothing about the bundle, so the report
    stays. Where there is none yet, none is written. What was raised goes on.

    Args:
        folder: Where :func:`write_reports` will write.
        stem: Name of the report's files, ``validate`` for example.

    Example:
        >>> with replacing_report(folder, "bench"):  # doctest: +SKIP
        ...     result = bench_on(bundle, target)
    """
    files = ReportFiles.of(Path(folder), stem)
    try:
        yield
    except (InputError, TargetError, UnknownAdapterError):
        raise
    except Exception as error:  # whatever it was, the earlier report is no longer true
        if any(path.exists() for path in (files.json, files.markdown, files.junit)):
            _write_broken(folder, stem, error)
        raise


def _write_broken(folder: str | Path, stem: str, error: Exception) -> None:
    gate = Gate.holds("measured to the end", False, f"{type(error).__name__}: {error}")
    kind = stem.partition("-")[0]
    report = Report(
        kind=kind, title=f"{kind} did not end; an earlier report was here", gates=(gate,), data={"error": str(error)}
    )
    try:
        write_reports(folder, stem, report)
    except InputError as second:
        raise second from error


def write_reports(folder: str | Path, stem: str, report: Report) -> ReportFiles:
    """Write ``<stem>.json``, ``<stem>.md`` and ``<stem>.junit.xml`` into ``folder``, made if needed.

    Each file is replaced in one step: a second run overwrites, a killed one leaves the old file whole. Raises
    :class:`InputError` where the folder cannot be written.
    """
    if not stem or Path(stem).name != stem:
        raise InputError(f"{stem!r} cannot name a report: use a plain file name without a suffix")
    folder = Path(folder)
    files = ReportFiles.of(folder, stem)
    # All texts first: a report that cannot be rendered replaces nothing.
    texts = {
        files.json: to_json(report, datetime.now(UTC)),
        files.markdown: to_markdown(report),
        files.junit: to_junit(report),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            replace_text(path, text)
    except OSError as error:
        raise InputError(f"cannot write the report to {folder}: {error.strerror or error}") from error
    return files


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step, readable by all: a reader sees the old one or the new one whole."""
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
