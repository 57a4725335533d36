"""``edgepeft search``: many pipeline runs, and the front of what they reach."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click
import cloup
from cloup import argument, option

from .guarded import guarded
from .options import PATH, json_option
from .show import print_json, steps, table, warn
from .train_processes import first_speaks


@cloup.command()
@argument("study", type=PATH, metavar="STUDY.toml")
@option(
    "--workers", type=click.IntRange(min=1), default=1, metavar="N", help="Processes that share the study on this host."
)
@option(
    "--ray",
    metavar="ADDRESS",
    help="Run the workers as tasks of Ray: local starts one here, auto or HOST:PORT joins a cluster whose hosts share this disk.",
)
@option("--trials", type=click.IntRange(min=1), metavar="N", show_default="the file's", help="Trials in all.")
@json_option
@guarded
@first_speaks()
def search(study: Path, workers: int, ray: str | None, trials: int | None, as_json: bool) -> None:
    """Search settings for accuracy, latency and size.

    The file says what is searched over: data, model, method, rank, recipe. Each trial trains an adapter, exports it, rounds the
    base and measures, in a folder of its own. Call it again to go on where it was, or elsewhere at the same time to share the
    work. Ends with the front: the trials that nothing beats in accuracy, latency and MB together, as a table, in
    report/search.json and in report.html. Exit code 1: no trial came to its end.
    """
    from ..search import read_study, run_study
    from ..search.front import tables

    read = read_study(study)
    if trials is not None:
        read = replace(read, trials=trials)
    with steps() as announce:
        found = run_study(read, workers=workers, ray=ray, announce=announce)
    page = _page(found.folder)
    if as_json:
        print_json({**found.as_dict(), "page": page})
    else:
        front, _ = tables(found)
        table(front.title, front.columns, [tuple(map(_cell, row)) for row in front.rows])
        ended = sum(row.accuracy is not None for row in found.trials)
        click.echo(f"{found.folder}: {ended} of {len(found.trials)} trials ended, {len(found.front)} on the front")
        if page:
            click.echo(f"report: {page}")
    if not found.front:
        sys.exit(1)


def _cell(value: object) -> str | None:
    return None if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _page(folder: Path) -> str | None:
    """The study as a page; ``None`` where what draws it is not installed."""
    from ..errors import MissingExtraError
    from ..html_report import write_html_report

    try:
        return str(write_html_report([folder / "report"]).path)
    except MissingExtraError as error:
        warn(f"report.html was not written: {error}")
        return None
