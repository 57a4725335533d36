"""``edgepeft targets pack``: what a target gets of a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from ..guarded import guarded
from ..options import (
    Command,
    bundle_argument,
    calibration_option,
    json_option,
    option,
    pair_option,
    path_option,
    text_option,
)
from ..show import print_json, steps
from ..values import calibration_texts


@click.command(cls=Command)
@bundle_argument
@option("--target", section="What", required=True, metavar="TARGET", help="A shipped target, or a target file.")
@path_option(
    "--out", section="What", required=True, help="The bundle folder to write; an old bundle there is replaced."
)
@calibration_option
@text_option
@pair_option
@json_option
@guarded
def pack(
    bundle: Path, target: str, out: Path, data: tuple[str, ...], text: str, pair: str | None, as_json: bool
) -> None:
    """Write what a target gets of a bundle.

    Its preferred variant (made where a recipe can), its slot style, threads and file format, and nothing else; refused over
    the target's size budget. `edgepeft export --target` does it in one go.
    """
    from ...pipeline import fit
    from ...targets import load_target

    with steps() as announce:
        texts = calibration_texts(data, text, pair)
        done = fit(bundle, load_target(target), out, data=texts, announce=announce)
    if as_json:
        print_json({"bundle": str(done.bundle.path), "variant": done.variant, "mb": done.size_mb, "notes": done.notes})
        return
    for note in done.notes:
        click.echo(f"passed over {note}")
    click.echo(f"{done.bundle.path}: {done.variant} for {target}, {done.size_mb:.2f} MB")
