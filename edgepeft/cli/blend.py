"""``edgepeft blend``: a weighted sum of adapters."""

from __future__ import annotations

from pathlib import Path

import click

from .guarded import guarded
from .options import Command, bundle_argument, json_option, option
from .show import megabytes, print_json, warn
from .values import parse_weights


@click.command(cls=Command)
@bundle_argument
@click.argument("weights", nargs=-1, required=True, metavar="NAME=WEIGHT...")
@option(
    "--out",
    section="What",
    required=True,
    metavar="NAME|FILE",
    help="The adapter to write into the bundle, or an .onnx_adapter file.",
)
@option(
    "--head",
    section="What",
    metavar="NAME",
    help="The adapter whose head (and biases and norms) the blend takes where they differ.",
)
@click.option("--replace", is_flag=True, help="Replace an adapter or file of the same name.")
@json_option
@guarded
def blend(bundle: Path, weights: tuple[str, ...], out: str, head: str | None, replace: bool, as_json: bool) -> None:
    """Write a weighted sum of adapters as an adapter of its own.

    The sum is exact: ranks are set side by side. Weights may be negative (after --, as in: blend B --out c -- a=1 b=-0.5).
    """
    from ..pipeline import blend as run

    result = run(bundle, parse_weights(weights), out, head=head, replace=replace)
    if isinstance(result, Path):
        if as_json:
            print_json({"file": str(result)})
        else:
            click.echo(f"{result}: {', '.join(weights)}")
        return
    if not result.changes_output:
        warn(f"{out} changes nothing: its parts cancel")
    entry = result.entry
    if as_json:
        print_json({"adapter": out, **entry.model_dump(mode="json"), "changes_output": result.changes_output})
        return
    rank = max(entry.ranks.values(), default=0)
    click.echo(f"{bundle}: added {out} ({', '.join(weights)}; largest rank {rank}, {megabytes(entry.bytes)})")
