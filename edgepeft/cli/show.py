"""What people see: tables on standard output, progress and warnings on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..json_text import json_text
from .verbosity import LOGGER, STEPS, quiet

if TYPE_CHECKING:
    from ..report import Partial
    from ..report.gate import Report

_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def warn(message: str) -> None:
    """A warning on standard error."""
    LOGGER.warning(message)
    click.secho(f"Warning: {message}", fg="yellow", err=True)


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """A function that tells what is being done, on standard error: a spinner and what is behind us on a terminal."""
    if quiet():
        yield STEPS.info
        return
    if not sys.stderr.isatty():

        def say(message: str) -> None:
            STEPS.info(message)
            click.echo(message, err=True)

        yield say
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    current: list[str] = []

    def settle() -> None:
        for message in current:
            console.print(Text(message, style="yellow" if "WARNING" in message else "dim"))
        current.clear()

    with console.status("starting") as status:

        def announce(message: str) -> None:
            STEPS.info(message)
            settle()
            current.append(message)
            status.update(Text(message))

        yield announce
        settle()


@contextmanager
def bar() -> Iterator[Callable[[int, int, str], None]]:
    """A function that tells how far a measurement is, on standard error: a bar on a terminal, else a line a step."""
    if quiet():
        yield lambda done, total, what: STEPS.info("[%d/%d] %s", done, total, what)
        return
    if not sys.stderr.isatty():

        def say(done: int, total: int, what: str) -> None:
            STEPS.info("[%d/%d] %s", done, total, what)
            click.echo(f"[{done}/{total}] {what}", err=True)

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda done, total, what: progress.update(task, completed=done, total=total, description=what)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on standard output: fitted to a terminal, as wide as its cells anywhere else."""
    from .tables import draw

    width = None
    if sys.stdout.isatty():
        from rich.console import Console

        width = Console().width
    if title:
        click.secho(title, bold=True)
    click.echo(draw(columns, [[cell(value) for value in row] for row in rows], width, _COLOURS))
    click.echo()


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    click.echo(json_text(value, default=str))


def cell(value: Any) -> str:
    """A table cell: numbers short, nothing as a dash."""
    from ..report import format_cell

    if isinstance(value, bool):
        return "yes" if value else "no"
    return format_cell(value) or "–"


def print_report(report: Report) -> None:
    """A report for people: its tables, its gates with the worst first, why any did not pass, its notes."""
    from ..report import format_cell

    for drawn in report.tables:
        table(drawn.title, drawn.columns, drawn.rows)
    order = ["fail", "inconclusive", "pass"]
    gates = sorted(report.gates, key=lambda gate: order.index(gate.verdict))
    if gates:
        table(
            "Gates",
            ("verdict", "gate", "value", "limit", "unit", "margin"),
            [
                (
                    gate.verdict.value,
                    gate.name,
                    gate.value,
                    None if gate.limit is None else f"{'≤' if gate.bound == 'max' else '≥'} {format_cell(gate.limit)}",
                    gate.unit,
                    None if gate.margin is None else f"{gate.margin:+.0%}",
                )
                for gate in gates
            ],
        )
    for gate in gates:
        if not gate.ok and gate.detail:
            click.echo(f"{gate.verdict.value}: {gate.name}: {gate.detail}")
    for note in report.notes:
        click.echo(note)
    click.echo("verdict: " + click.style(report.verdict.value, fg=_COLOURS[report.verdict.value], bold=True))


@contextmanager
def measured(folder: Path | None, bundle: Path, stem: str) -> Iterator[Partial]:
    """Measure inside this: where that breaks, the report of an earlier run is replaced; what is yielded takes results so far.

    Raises :class:`BundleError` where there is no such bundle; what was said of another one stays.
    """
    from ..bundle import require_bundle
    from ..report import replacing_report

    require_bundle(bundle)
    with replacing_report(folder or bundle / "report", stem) as partial:
        try:
            yield partial
        except (KeyboardInterrupt, SystemExit):
            click.echo(f"Broken off: the report in {folder or bundle / 'report'} is marked as partial.", err=True)
            raise


def finish(report, folder: Path | None, bundle: Path, stem: str, as_json: bool) -> None:  # type: ignore[no-untyped-def] # targets.Report, not imported at start
    """Write the report, print it, and exit with its verdict\'s code."""
    from ..bundle import staying
    from ..report import write_reports

    # A command that changes the bundle meanwhile would take the report away with the old folder.
    with staying(bundle) if folder is None else nullcontext():
        files = write_reports(folder or bundle / "report", stem, report)
    if as_json:
        print_json(json.loads(files.json.read_text(encoding="utf-8")))
    else:
        print_report(report)
        click.echo(f"reports: {files.json}, {files.markdown.name}, {files.junit.name}")
    sys.exit(report.verdict.exit_code)


def megabytes(count: int) -> str:
    """Bytes as MB (10^6)."""
    return f"{count / 1e6:.2f} MB"
