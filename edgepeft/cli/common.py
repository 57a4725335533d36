"""What every command shares: errors and exit codes, progress, tables, JSON."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from ..errors import EdgepeftError, InputError

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
force_option = click.option(
    "--force", is_flag=True, help="Accept a foreign adapter whose base_model_name_or_path names another base."
)
bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))


def guarded(command: F) -> F:
    """Print an :class:`EdgepeftError` as ``Error: …`` and exit with 2; with ``--json`` as ``{"error": …}``."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except EdgepeftError as error:
            if kwargs.get("as_json"):
                click.echo(json.dumps({"error": str(error), "type": type(error).__name__}))
            click.secho(f"Error: {error}", err=True, fg="red")
            sys.exit(2)

    return wrapper  # type: ignore[return-value] # functools.wraps keeps the signature


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(value, indent=1, default=str))


@contextmanager
def progress(as_json: bool) -> Iterator[Callable[[str], None]]:
    """A function that tells what is being done: a spinner on a terminal, lines on standard error elsewhere."""
    if as_json:
        yield lambda message: None
    elif sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status("starting") as status:
            yield status.update
    else:
        yield lambda message: click.echo(message, err=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on standard output; as wide as its cells need where the output is not a terminal."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title, title_justify="left", header_style="bold")
    for position, column in enumerate(columns):
        drawn.add_column(column, justify="left" if position == 0 else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(cell(value) for value in row))
    Console(width=None if sys.stdout.isatty() else 160).print(drawn)


def cell(value: Any) -> str:
    """A table cell: numbers short, nothing as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1e}" if value and abs(value) < 1e-3 else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return str(value)


def megabytes(count: int) -> str:
    """Bytes as MB (10^6)."""
    return f"{count / 1e6:.2f} MB"


def named(values: Sequence[str], option: str) -> dict[str, str]:
    """``NAME=VALUE`` pairs of a repeated option; a name given twice or a missing ``=`` is an error."""
    found: dict[str, str] = {}
    for value in values:
        name, separator, rest = value.partition("=")
        if not separator or not name or not rest:
            raise InputError(f"{option} {value!r}: expected NAME=PATH, for example {option} reviews=./reviews-lora")
        if name in found:
            raise InputError(f"{option}: the name {name!r} is given twice")
        found[name] = rest
    return found
