"""``edgepeft targets setup``: fetch what executing a target needs."""

from __future__ import annotations

import sys

import click

from ..guarded import guarded
from ..options import Command
from ..show import steps


@click.command(cls=Command)
@click.argument("target")
@click.option("--again", is_flag=True, help="Fetch and build it again where it is complete.")
@guarded
def setup(target: str, again: bool) -> None:
    """Fetch what this machine needs to execute a target.

    Into edgepeft's cache: nothing is installed, and no root is needed. For linux-arm64-cpu on other than Arm hosts: an
    aarch64 Python from Debian 12's packages, pinned aarch64 wheels, and qemu where none is installed.
    """
    from ...devices import executor_for, setup_target
    from ...targets import load_target

    loaded = load_target(target)
    with steps() as announce:
        setup_target(loaded, announce, again=again)
    executor = executor_for(loaded)
    missing = () if executor is None else executor.missing()
    for each in missing:
        click.echo(f"still missing: {each.what}\n    {each.remedy}")
    click.echo(f"{loaded.name}: {'not ready' if missing else 'ready'}")
    sys.exit(1 if missing else 0)
