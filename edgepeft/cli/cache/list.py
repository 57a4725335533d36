"""``edgepeft cache list``: what the cache holds."""

from __future__ import annotations

import datetime
from dataclasses import asdict

import click
import cloup

from ..guarded import guarded
from ..options import json_option
from ..show import megabytes, print_json, table


@cloup.command("list")
@json_option
@guarded
def list_(as_json: bool) -> None:
    """List what the cache holds.

    The folder is EDGEPEFT_CACHE, by default ~/.cache/edgepeft. Hugging Face's own cache is another: `hf cache ls` lists it.
    """
    from ...cache import KINDS, cache_dir, cache_entries

    entries = cache_entries()
    if as_json:
        print_json({"folder": str(cache_dir()), "entries": [asdict(entry) for entry in entries]})
        return
    if entries:
        rows = [
            (
                entry.name,
                megabytes(entry.bytes),
                datetime.datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d"),
                KINDS.get(entry.name.partition("/")[0], "-"),
            )
            for entry in entries
        ]
        table("", ("entry", "size", "last used", "what"), rows)
    click.echo(f"{cache_dir()}: {len(entries)} entries, {megabytes(sum(entry.bytes for entry in entries))}")
