"""``edgepeft add``: one more adapter in a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from .guarded import guarded
from .options import Command, bundle_argument, force_option, json_option, option
from .show import megabytes, print_json, steps, warn
from .values import named

_UNTRAINED = "changes nothing (its B matrices are zero: was it trained?)"


@click.command(cls=Command)
@bundle_argument
@option(
    "--adapter",
    section="What",
    required=True,
    metavar="NAME=PATH",
    help="A PEFT checkpoint (folder or Hugging Face id, PATH#task=N for one of its tasks), or an .onnx / .onnx_adapter "
    "file that edgepeft exported.",
)
@click.option("--replace", is_flag=True, help="Replace an adapter of the same name.")
@force_option
@json_option
@guarded
def add(bundle: Path, adapter: str, replace: bool, force: bool, as_json: bool) -> None:
    """Add an adapter to a bundle.

    The base is not touched and torch is not imported.
    """
    ((name, source),) = named([adapter], "--adapter").items()
    from ..pipeline import add as run

    with steps() as announce:
        result = run(bundle, name, source, force=force, replace=replace, announce=announce)
    if not result.changes_output:
        warn(f"{name} {_UNTRAINED}")
    entry = result.entry
    if as_json:
        print_json({"adapter": name, **entry.model_dump(mode="json"), "changes_output": result.changes_output})
        return
    labels = f", labels {', '.join(entry.labels)}" if entry.labels else ""
    click.echo(
        f"{bundle}: added {name} ({entry.method}, {len(entry.tensors)} tensors, {megabytes(entry.bytes)}{labels})"
    )
