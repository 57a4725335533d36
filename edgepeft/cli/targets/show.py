"""``edgepeft targets show``: a target's rules and budgets."""

from __future__ import annotations

from typing import Any

import click

from ..guarded import guarded
from ..options import Command, json_option
from ..show import print_json, table


@click.command(cls=Command)
@click.argument("target")
@json_option
@guarded
def show(target: str, as_json: bool) -> None:
    """Show a target's rules and budgets."""
    from ...targets import load_target

    found = load_target(target).model_dump(mode="json")
    if as_json:
        print_json(found)
        return
    click.echo(f"{found['name']}: {found['summary']}")
    table("", ("key", "value"), [row for row in _flat(found) if row[0] not in {"name", "summary"}])


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested keys as the target file's dotted ones, with values as that file writes them."""
    rows: list[tuple[str, str]] = []
    for key, inner in value.items():
        if isinstance(inner, dict):
            rows += _flat(inner, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, ", ".join(map(str, inner)) if isinstance(inner, list) else str(inner)))
    return rows
