"""``edgepeft tune``: find a good adapter."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup
from cloup import option, option_group

from ..errors import InputError
from .guarded import guarded
from .options import (
    PATH,
    json_option,
    label_option,
    mix_temperature_option,
    pair_option,
    precision_option,
    text_option,
)
from .show import print_json, steps, table, warn
from .train_compare import spread
from .train_processes import first_speaks
from .train_side_effects import say_side_effects
from .train_sources import one_or_all, say_sources

if TYPE_CHECKING:
    from ..train.tuned import Tuning


@cloup.command()
@option_group(
    "What",
    option("--model", required=True, metavar="MODEL", help="The base: a folder or a Hugging Face id."),
    option("--out", type=PATH, required=True, help="The adapter folder to write; an old adapter there is replaced."),
    option(
        "--budget",
        default="10min",
        metavar="TIME",
        help="Time for the whole, the winner's training included, such as 90s, 10min or 1h.",
    ),
    option(
        "--target",
        metavar="TARGET",
        help="Among settings that are not clearly different take the one that adds least to a run on this target, a shipped one "
        "or a file, of this kind of machine.",
    ),
)
@option_group(
    "Data",
    option(
        "--data",
        required=True,
        multiple=True,
        metavar="FILE",
        help="Labelled rows, as for train; all are used. Repeated: several sources, each with scores of its own.",
    ),
    option(
        "--validation",
        multiple=True,
        metavar="FILE",
        help="Rows that only the finished adapter is measured on: one for each --data in their order, or one for all.",
    ),
    mix_temperature_option,
    text_option,
    label_option,
    pair_option,
)
@option_group(
    "Training",
    option("--batch-size", default=16, metavar="N", help="Rows in a step."),
    option(
        "--max-length",
        type=int,
        metavar="N",
        show_default="128, or the model's limit",
        help="Tokens a row is cut to.",
    ),
    option("--seed", default=0, metavar="N", help="Seed of folds, initial weights and orders."),
    option(
        "--threads", type=int, metavar="N", show_default="the fastest, timed on the steps", help="PyTorch's threads."
    ),
    precision_option,
)
@json_option
@guarded
@first_speaks()
def tune(
    model: str,
    out: Path,
    budget: str,
    data: tuple[str, ...],
    validation: tuple[str, ...],
    text: str,
    label: str,
    as_json: bool,
    target: str | None,
    **given: Any,
) -> None:
    """Find a good adapter for labelled rows, within a time.

    A head on frozen features first, then the learning rate (a range test, and rates around it), where LoRA goes, its rank, and
    other methods last; each judged out of fold. Ends with the adapter, trained on all rows, and a table of what was tried. Exit
    code 1: the adapter is worse than the base.
    """
    seconds = parse_seconds(budget)
    from ..targets import load_target
    from ..train.tune import tune as find

    loaded = None if target is None else load_target(target)
    with steps() as announce:
        found = find(
            model,
            one_or_all(data),
            out,
            validation=one_or_all(validation) if validation else None,
            budget_s=seconds,
            target=loaded,
            text=text,
            label=label,
            announce=announce,
            **given,
        )
    for warning in found.warnings:
        warn(warning)
    if as_json:
        print_json(asdict(found))
    else:
        _show(found)
    if found.adapter.verdict == "worse":
        sys.exit(1)


def parse_seconds(value: str) -> float:
    """A time as people write it.

    Example:
        >>> parse_seconds("10min")
        600.0
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|m|min|h)?\s*", value.lower())
    if found is None or not float(found.group(1)):
        raise InputError(f"--budget {value!r}: expected a time such as 90s, 10min or 1h")
    return float(found.group(1)) * {"m": 60, "min": 60, "h": 3600}.get(found.group(2) or "s", 1)


def _show(found: Tuning) -> None:
    costs = any(row.added_ms is not None for row in found.tried)
    table(
        f"What was tried, out of fold: the chosen one on {found.judged_rows} rows, in {found.folds} "
        f"{'folds' if found.folds > 1 else 'fold'}",
        (
            "stage",
            "what",
            "steps",
            "accuracy [95 %]",
            "against the chosen [95 %]",
            "loss",
            "s",
            *(["adds ms"] if costs else []),
        ),
        [
            (
                row.stage,
                row.what,
                str(row.steps or "–"),
                spread(row.accuracy),
                "chosen" if row.change is None else spread(row.change, "+"),
                f"{row.loss:.3f}",
                f"{row.seconds:.0f}",
                *([f"{row.added_ms:.3f}"] if row.added_ms is not None else []),
            )
            for row in found.tried
        ],
    )
    say_sources(found.adapter.sources)
    say_side_effects(found.adapter.calibration, None)
    click.echo(f"{found.adapter.folder}: {found.chosen}")
    click.echo(f"why: {found.why}")
    if found.left:
        click.echo(f"not tried within the budget: {'; '.join(found.left)}")
    else:
        click.echo("a bigger budget would try nothing else; more rows would narrow the intervals")
