"""``edgepeft report``: one HTML page from bundles and saved reports."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click
import cloup
from cloup import argument, option

from .guarded import guarded
from .options import PATH, json_option
from .show import print_json


@cloup.command()
@argument("sources", type=PATH, nargs=-1, required=True, metavar="BUNDLE|ADAPTER|REPORT…")
@option("--out", type=PATH, help="The page; without it report/report.html of the first bundle.")
@option("--open", "show", is_flag=True, help="Show the page in the browser.")
@json_option
@guarded
def report(sources: tuple[Path, ...], out: Path | None, show: bool, as_json: bool) -> None:
    """Join what was measured into one HTML page.

    Takes bundles (the reports of validate, bench and check in them, sizes and hashes), trained adapters (their learning
    curves), folders of reports, or single .json reports; several bench reports make a history. The page is one file that
    loads nothing, in light and dark, for screens and paper. It shows verdicts and has none of its own: the exit code is 0
    where the page was written.
    """
    from ..html_report import write_html_report

    written = write_html_report(sources, out)
    if as_json:
        print_json(
            {
                "path": str(written.path),
                "verdict": written.verdict.value,
                "reports": [str(saved.path) for saved in written.reports],
                "bytes": written.bytes,
            }
        )
    else:
        count = len(written.reports)
        click.echo(f"{written.path}: {count} report{'' if count == 1 else 's'}, verdict {written.verdict.value}")
    if show:
        webbrowser.open(written.path.resolve().as_uri())
