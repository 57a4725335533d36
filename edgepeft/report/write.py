"""Writing reports so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..errors import InputError, TargetError, UnknownAdapterError
from .gate import Gate, Report
from .partial import ENDED, Partial
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
def replacing_report(folder: str | Path, stem: str) -> Iterator[Partial]:
    """Measure inside this: where that breaks, an earlier report of the same name is replaced by one that says so.

    A "pass" that stays on disk would be taken for the verdict on what is there now. So it goes when measuring begins (the first
    ``keep`` of what this gives), and a killed process leaves a report that says it did not end. Ctrl-C and SIGTERM leave a
    partial report of what was kept, also where there was none before. A call that is wrong (:class:`InputError`,
    :class:`TargetError`, :class:`UnknownAdapterError`) says nothing about the bundle: the earlier report comes back. Any other
    error replaces an earlier report and makes none. What was raised goes on.

    Args:
        folder: Where :func:`write_reports` will write.
        stem: Name of the report's files, ``validate`` for example.

    Yields:
        What takes the results so far.

    Example:
        >>> with replacing_report(folder, "bench") as partial:  # doctest: +SKIP
        ...     result = bench_on(bundle, target, keep=partial.keep)
    """
    files = ReportFiles.of(Path(folder), stem)
    kind = stem.partition("-")[0]
    earlier = _contents(files)
    partial = Partial(lambda: _begin(folder, stem, kind) if earlier else None)
    try:
        yield partial
    except (InputError, TargetError, UnknownAdapterError):
        _restore(earlier)
        raise
    except Exception as error:  # whatever it was, the earlier report is no longer true
        if earlier:
            _write_broken(folder, stem, error)
        raise
    except BaseException as stop:
        write_reports(folder, stem, partial.report(kind, _why(stop)))
        raise


def _why(stop: BaseException) -> str:
    code = stop.code if isinstance(stop, SystemExit) else None
    return f"ended by signal {code - 128}" if isinstance(code, int) and code > 128 else "interrupted"


def _contents(files: ReportFiles) -> dict[Path, bytes]:
    """The report that is there, by file; a file that cannot be read is left out, and is replaced or refused later."""
    found = {}
    for path in (files.json, files.markdown, files.junit):
        with suppress(OSError):
            found[path] = path.read_bytes()
    return found


def _restore(earlier: Mapping[Path, bytes]) -> None:
    for path, content in earlier.items():
        with suppress(OSError):  # the error that is on its way says more
            if path.read_bytes() != content:
                replace_text(path, content.decode("utf-8", "surrogateescape"))


def _begin(folder: str | Path, stem: str, kind: str) -> None:
    why = "it is still running, or was killed"
    write_reports(folder, stem, Partial().report(kind, why))


def _write_broken(folder: str | Path, stem: str, error: Exception) -> None:
    gate = Gate.holds(ENDED, False, f"{type(error).__name__}: {error}")
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
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files for the owner alone; a report is for CI's other users too.
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
