"""``edgepeft targets doctor``: whether this machine can execute a target."""

from __future__ import annotations

import sys

import click

from ..guarded import guarded
from ..options import Command, json_option, on_option
from ..show import print_json


@click.command(cls=Command)
@click.argument("target")
@on_option
@json_option
@guarded
def doctor(target: str, on: str | None, as_json: bool) -> None:
    """Say whether this machine can execute a target.

    And what to run where something is missing. Exit code 0: it can; 1: it cannot.
    """
    from ...devices import executor_for
    from ...targets import load_target

    loaded = load_target(target)
    executor = executor_for(loaded, on)
    missing = () if executor is None else executor.missing()
    ready = executor is not None and not missing
    if as_json:
        print_json(
            {
                "target": loaded.name,
                "executor": None if executor is None else executor.name,
                "ready": ready,
                "emulated": executor is not None and executor.emulated,
                "missing": [{"what": each.what, "remedy": each.remedy} for each in missing],
            }
        )
    elif executor is None:
        click.echo(f"{loaded.name}: static only. No executor runs it; sizes, opset, operators and slots are checked.")
    else:
        for each in missing:
            click.echo(f"missing: {each.what}\n    {each.remedy}")
        kind = " (emulated: times are not judged)" if executor.emulated else ""
        click.echo(f"{loaded.name}: {'ready, ' if ready else 'not ready for '}{executor.name}{kind}")
    if loaded.note and not as_json:
        click.echo(f"note: {loaded.note}")
    sys.exit(0 if ready else 1)
