"""``edgepeft targets freeze``: graphs with fixed shapes."""

from __future__ import annotations

from pathlib import Path

import click

from ..guarded import guarded
from ..options import Command, bundle_argument, json_option, option, path_option
from ..show import print_json


@click.command(cls=Command)
@bundle_argument
@option("--target", section="What", required=True, metavar="TARGET", help="A target with buckets, shipped or a file.")
@option(
    "--adapter", section="What", metavar="NAME", show_default="slots stay inputs", help="Make this adapter constant."
)
@option(
    "--variant",
    section="What",
    metavar="NAME",
    show_default="the target's first that there is",
    help="Of this variant.",
)
@path_option("--out", section="What", required=True, help="The folder for the graphs.")
@json_option
@guarded
def freeze(bundle: Path, target: str, adapter: str | None, variant: str | None, out: Path, as_json: bool) -> None:
    """Write graphs with fixed shapes.

    One for each bucket of the target. With --adapter its slots are constants, for providers that want constant weights; without
    one, slots are inputs of a fixed rank that any adapter of the bundle can be padded to.
    """
    from ...pipeline import write_static
    from ...targets import load_target

    files = write_static(bundle, load_target(target), out, adapter=adapter, variant=variant)
    if as_json:
        print_json({"files": [str(file) for file in files]})
        return
    for file in files:
        click.echo(str(file))
