"""``edgepeft targets show``: a target's rules and budgets."""

from __future__ import annotations

from typing import Any

import click
import cloup

from ..guarded import guarded
from ..options import json_option
from ..show import print_json, table


@cloup.command()
@click.argument("target")
@json_option
@guarded
def show(target: str, as_json: bool) -> None:
    """Show a target's rules and budgets."""
    from ...targets import load_target

    fields = load_target(target).model_dump(mode="json")
    if as_json:
        print_json(fields)
        return
    click.echo(f"{fields['name']}: {fields['summary']}")
    table("", ("key", "value"), [row for row in _flat(fields) if row[0] not in {"name", "summary"}])


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested keys as the target file's dotted ones, with values as that file writes them."""
    rows: list[tuple[str, str]] = []
    for key, inner in value.items():
        if isinstance(inner, dict):
            rows += _flat(inner, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, ", ".join(map(str, inner)) if isinstance(inner, list) else str(inner)))
    return rows
