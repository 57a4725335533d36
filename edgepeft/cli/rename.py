"""``edgepeft rename``: another name for an adapter."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from .guarded import guarded
from .options import bundle_argument, json_option, lock_option
from .show import print_json


@cloup.command()
@bundle_argument
@click.argument("old")
@click.argument("new")
@lock_option
@json_option
@guarded
def rename(bundle: Path, old: str, new: str, lock_timeout: float, as_json: bool) -> None:
    """Rename an adapter of a bundle.

    Its files are renamed with it. What they hold, and the other adapters, are unchanged.
    """
    from ..pipeline import rename as run

    entry = run(bundle, old, new, lock_timeout=lock_timeout).adapter(new)
    if as_json:
        print_json({"adapter": new, "was": old, "files": entry.files()})
        return
    click.echo(f"{bundle}: {old} is now {new}")
