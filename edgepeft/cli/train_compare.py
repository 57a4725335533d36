"""``edgepeft train --compare``: methods side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from .show import print_json, steps, table, warn
from .train_sources import say_sources

if TYPE_CHECKING:
    from ..metrics.intervals import Interval
    from ..train.compare import MethodComparison


def compared(
    model: str, data: str | tuple[str, ...], methods: str, out: Path | None, as_json: bool, **options: Any
) -> None:
    """Compare and print; ends with 1 where the adapter that was written is worse than the base."""
    from ..train.compare import compare_methods

    for name in ("method", "ship"):
        if options.pop(name, None) not in {None, "lora"}:
            raise InputError(f"--{name} says what one run trains; --compare names the methods")
    for name in ("peft", "use_dora", "use_rslora"):
        if options.pop(name, None):
            raise InputError(
                f"{'--peft' if name == 'peft' else name} is for one method; with --compare name dora or rslora"
            )
    options.pop("progress", None)
    with steps() as announce:
        names = [name.strip() for name in methods.split(",") if name.strip()]
        found = compare_methods(model, data, names, out, announce=announce, **options)
    for warning in found.warnings:
        warn(warning)
    if as_json:
        print_json(found.as_dict())
    else:
        _show(found)
    if found.adapter is not None and found.adapter.verdict == "worse":
        sys.exit(1)


def with_chosen_ranks(model: str, data: str | tuple[str, ...], out: Path, as_json: bool, **options: Any) -> None:
    """Train with ranks where a map says, and print the map; ends with 1 where the adapter is worse than the base."""
    from ..train.choose_ranks import train_with_chosen_ranks

    _without(options, "--modules auto", "peft")
    with steps() as announce:
        found = train_with_chosen_ranks(model, data, out, announce=announce, **options)
    for warning in found.adapter.warnings:
        warn(warning)
    if as_json:
        print_json(found.as_dict())
    else:
        header, *rows = found.map
        cost = "milliseconds" if found.unit == "ms" else "bytes"
        table(f"What layers are worth for their {cost} (darker: more), and the ranks that they get", header, rows)
        table(
            f"Chosen against uniform ranks, {found.budget:.3g} {found.unit} each"
            + (f" on {found.target}" if found.target else ""),
            ("ranks", found.unit, f"{found.metric} [95 %]", "change [95 %]"),
            [
                (
                    f"uniform r={found.uniform_rank} at {', '.join(found.uniform_targets[:4])}",
                    f"{found.uniform_cost:.3g}",
                    spread(found.uniform),
                    None,
                ),
                (
                    f"chosen, {len(found.ranks)} layers",
                    f"{found.chosen_cost:.3g}",
                    spread(found.chosen),
                    spread(found.change, "+"),
                ),
            ],
        )
        say_sources(found.adapter.sources)
        more = found.change.lower > 0 or found.change.upper < 0
        noise = "" if more else "; the difference lies within the noise, so the score decided and then the loss"
        click.echo(f"{found.adapter.folder}: {found.kept} ranks kept{noise}")
        click.echo(f"the map as a page: edgepeft report {found.adapter.folder}")
    if found.adapter.verdict == "worse":
        sys.exit(1)


def _without(options: dict[str, Any], why: str, *names: str) -> None:
    """Take out what is for one method alone, and refuse it where it was given."""
    if options.pop("method", "lora") != "lora" or options.pop("ship", None) is not None:
        raise InputError(f"{why} says itself what is trained: leave out --method and --ship")
    for name in names:
        if options.pop(name, None):
            raise InputError(f"--{name.removeprefix('use_')} does not go with {why}")
    options.pop("progress", None)


def spread(interval: Interval | None, sign: str = "") -> str | None:
    """An interval as tables show it."""
    if interval is None:
        return None
    return f"{interval.estimate:{sign}.3f} [{interval.lower:{sign}.3f}, {interval.upper:{sign}.3f}]"


def _show(found: MethodComparison) -> None:
    first = found.rows[0].method
    table(
        f"Methods on {found.validation_rows} validation rows",
        (
            "method", f"{found.metric} [95 %]", f"change from {first} [95 %]", "verdict", "trained %", "memory growth MB",
            "s an epoch", "file MB", "ships", "learning rate",
        ),
        [
            (
                row.method,
                spread(row.score),
                spread(row.change, "+"),
                row.verdict,
                f"{100 * row.share:.2f}",
                None if row.memory_mb is None else f"{row.memory_mb:.0f}",
                f"{row.seconds_an_epoch:.2f}",
                f"{row.file_mb:.2f}",
                row.ships or "no adapter",
                f"{row.learning_rate:g}",
            )
            for row in found.rows
        ],
    )  # fmt: skip
    if found.adapter is not None:
        say_sources(found.adapter.sources)
        click.echo(f"{found.adapter.folder}: {found.chosen}, the best score that ships; equal scores by file size")
    elif found.chosen:
        click.echo(f"best that ships: {found.chosen} (--out writes it)")
    for row in found.rows:
        if row.stopped:
            warn(f"{row.method}: {row.stopped}")
