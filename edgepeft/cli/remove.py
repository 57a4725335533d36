"""``edgepeft remove``: an adapter or a variant out of a bundle."""

from __future__ import annotations

from pathlib import Path

import click
import cloup
from cloup import option, option_group

from .guarded import guarded
from .options import bundle_argument, json_option, lock_option
from .show import megabytes, print_json


@cloup.command()
@bundle_argument
@option_group(
    "What",
    option("--adapter", metavar="NAME", help="The adapter to remove."),
    option("--variant", metavar="NAME", help="The variant to remove; the last one stays."),
)
@lock_option
@json_option
@guarded
def remove(bundle: Path, adapter: str | None, variant: str | None, lock_timeout: float, as_json: bool) -> None:
    """Remove an adapter or a variant from a bundle.

    Its files go with it. The others are unchanged.
    """
    from ..pipeline import remove as run

    result = run(bundle, adapter, variant=variant, lock_timeout=lock_timeout)
    if as_json:
        print_json({"adapter": adapter, "variant": variant, "files": result.files, "bytes": result.bytes})
        return
    click.echo(f"{bundle}: removed {adapter or variant} ({len(result.files)} files, {megabytes(result.bytes)})")
