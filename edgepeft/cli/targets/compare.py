"""``edgepeft targets compare``: a bundle held against every shipped target."""

from __future__ import annotations

from pathlib import Path

import click
import cloup
from cloup import option, option_group

from ..guarded import guarded
from ..options import bundle_argument, data_option, json_option, label_option, pair_option, report_option, text_option
from ..show import finish, measured, steps
from ..values import device_data


@cloup.command()
@bundle_argument
@option_group(
    "Data",
    data_option,
    text_option,
    label_option,
    pair_option,
    option("--rows", type=click.IntRange(min=1), metavar="N", help="Rows of each adapter to run."),
)
@option_group(
    "What",
    option("--static", is_flag=True, help="Execute nothing."),
    option("--no-reference", is_flag=True, help="Do not compare with PEFT (needs no torch)."),
)
@report_option
@json_option
@guarded
def compare(
    bundle: Path,
    data: tuple[str, ...],
    text: str,
    label: str,
    pair: str | None,
    rows: int | None,
    static: bool,
    no_reference: bool,
    report: Path | None,
    as_json: bool,
) -> None:
    """Hold a bundle against every shipped target.

    Executed where something here can, by static checks elsewhere: variant, size, how, verdict. Exit code 0: no check fails;
    1: one does; 3: one cannot tell.
    """
    from ...devices import compare_targets

    with measured(report, bundle, "compare") as partial, steps() as announce:
        done = compare_targets(
            bundle,
            data=device_data(bundle, data, text, label, pair),
            rows=rows,
            reference=not no_reference,
            execute=not static,
            progress=announce,
            keep=partial.keep,
        )
    finish(done, report, bundle, "compare", as_json)
