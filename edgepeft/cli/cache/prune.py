"""``edgepeft cache prune``: remove what is not used."""

from __future__ import annotations

import time

import click
import cloup
from cloup import option, option_group

from ...errors import InputError
from ..guarded import guarded
from ..options import json_option
from ..show import megabytes, print_json

_DAY = 86_400.0


@cloup.command()
@click.argument("names", nargs=-1)
@option_group(
    "What",
    option(
        "--older-than",
        type=click.FloatRange(min=0),
        metavar="DAYS",
        help="Entries that were last used longer ago.",
    ),
    option("--all", "everything", is_flag=True, help="Every entry."),
)
@option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
@guarded
def prune(names: tuple[str, ...], older_than: float | None, everything: bool, dry_run: bool, as_json: bool) -> None:
    """Remove entries of the cache.

    NAMES are entries or their beginnings, as `edgepeft cache list` writes them: runners/ means all runners. What is needed again
    is fetched or made again.
    """
    from ...cache import cache_dir, cache_entries, prune_cache
    from ...spelling import did_you_mean

    if not names and older_than is None and not everything:
        raise InputError("say what to remove: entries by name, --older-than DAYS, or --all")
    known = cache_entries()
    for name in names:
        if not any(entry.name.startswith(name) for entry in known):
            close = did_you_mean(name, [entry.name for entry in known])
            raise InputError(f"{cache_dir()} has no entry {name!r}{close}; `edgepeft cache list` lists them")
    limit = time.time() - older_than * _DAY if older_than is not None else None
    chosen = [
        entry
        for entry in known
        if (not names or entry.name.startswith(names)) and (limit is None or entry.used < limit)
    ]
    if not dry_run:
        prune_cache(chosen)
    total = sum(entry.bytes for entry in chosen)
    if as_json:
        print_json({"removed": [entry.name for entry in chosen], "bytes": total, "dry_run": dry_run})
        return
    for entry in chosen:
        click.echo(f"{'would remove' if dry_run else 'removed'} {entry.name} ({megabytes(entry.bytes)})")
    click.echo(f"{cache_dir()}: {len(chosen)} entries, {megabytes(total)}{' would go' if dry_run else ' freed'}")
