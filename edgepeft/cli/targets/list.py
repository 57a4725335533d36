"""``edgepeft targets list``: the shipped targets."""

from __future__ import annotations

import click

from ..guarded import guarded
from ..options import Command, json_option
from ..show import print_json, table


@click.command("list", cls=Command)
@json_option
@guarded
def list_(as_json: bool) -> None:
    """List the shipped targets."""
    from ...devices import find_place
    from ...targets import list_targets

    found = list_targets()
    if as_json:
        print_json([{**t.model_dump(mode="json"), "executes": find_place(t).executor is not None} for t in found])
        return
    rows = []
    for target in found:
        place = find_place(target)
        how = place.executor.name if place.executor is not None else "static only"
        summary = target.summary if target.status == "supported" else f"{target.summary} [{target.status}]"
        rows.append((target.name, summary, ", ".join(target.variants), how))
    table("Targets", ("target", "summary", "variants", "executed here by"), rows)
    click.echo("`edgepeft targets doctor TARGET` says what is missing where nothing executes a target.")
