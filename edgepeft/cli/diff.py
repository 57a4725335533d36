"""``edgepeft diff``: in what two bundles differ."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import cloup

from .guarded import guarded
from .options import PATH, json_option
from .show import megabytes, print_json, table

#: Digits of a hash that are shown; --json has them all.
_DIGITS = 12


@cloup.command()
@click.argument("before", type=PATH)
@click.argument("after", type=PATH)
@json_option
@guarded
def diff(before: Path, after: Path, as_json: bool) -> None:
    """Show in what two bundles differ.

    Base, slots, variants, adapters, and other files by hash; when and with which versions a bundle was made is not compared.
    Exit code 0: they hold the same; 1: they differ.
    """
    from ..pipeline import diff as run

    result = run(before, after)
    if as_json:
        print_json({"same": result.same, **asdict(result)})
    else:
        if result.differences:
            rows = [
                (each.kind, each.name or "–", each.what, _short(each.before), _short(each.after))
                for each in result.differences
            ]
            table("", ("of", "name", "what", "before", "after"), rows)
        verdict = "the same" if result.same else f"{len(result.differences)} differences"
        click.echo(f"{verdict}; on disk {megabytes(result.before_bytes)} -> {megabytes(result.after_bytes)}")
    sys.exit(0 if result.same else 1)


def _short(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict) and "bytes" in value:
        return megabytes(value["bytes"])
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(each)}" for name, each in value.items()) or "–"
    if isinstance(value, tuple):
        return ", ".join(map(_short, value))
    text = str(value)
    return f"{text[:_DIGITS]}…" if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
