"""``edgepeft targets pack``: what a target gets of a bundle."""

from __future__ import annotations

from pathlib import Path

import click
import cloup
from cloup import option, option_group

from ..guarded import guarded
from ..options import (
    PATH,
    bundle_argument,
    calibration_option,
    dry_run_option,
    json_option,
    lock_option,
    pair_option,
    text_option,
)
from ..show import megabytes, print_json, steps, table
from ..values import calibration_data


@cloup.command()
@bundle_argument
@option_group(
    "What",
    option("--target", required=True, metavar="TARGET", help="A shipped target, or a target file."),
    option("--out", type=PATH, required=True, help="The bundle folder to write; an old bundle there is replaced."),
)
@option_group("Data", calibration_option, text_option, pair_option)
@dry_run_option
@lock_option
@json_option
@guarded
def pack(
    bundle: Path,
    target: str,
    out: Path,
    data: tuple[str, ...],
    text: str,
    pair: str | None,
    dry_run: bool,
    lock_timeout: float,
    as_json: bool,
) -> None:
    """Write what a target gets of a bundle.

    Its preferred variant (made where a recipe can), its slot style, threads and file format, and nothing else; refused over
    the target's size budget. `edgepeft export --target` does it in one go.
    """
    from ...pipeline import fit
    from ...targets import load_target

    with steps() as announce:
        texts = calibration_data(bundle, data, text, pair)
        done = fit(
            bundle, load_target(target), out, data=texts, dry_run=dry_run, lock_timeout=lock_timeout, announce=announce
        )
    files = {name: entry.bytes for name, entry in done.bundle.manifest.files.items()}
    if as_json:
        print_json({"bundle": str(done.bundle.path), "variant": done.variant, "mb": done.size_mb, "notes": done.notes,
                    "files": files, "dry_run": dry_run})  # fmt: skip
        return
    for note in done.notes:
        click.echo(f"passed over {note}")
    if dry_run:
        table("", ("file", "size"), [(name, megabytes(size)) for name, size in files.items()])
        click.echo(
            f"{done.bundle.path}: would get {done.variant} for {target}, {done.size_mb:.2f} MB; nothing was written"
        )
        return
    click.echo(f"{done.bundle.path}: {done.variant} for {target}, {done.size_mb:.2f} MB")
