"""``edgepeft train --verdict``: is an adapter enough for the task?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from .show import print_json, steps, table
from .train_compare import spread

_TAKEN = {"text", "label", "pair", "learning_rate", "batch_size", "max_length", "seed", "threads", "mix_temperature"}


def say_verdict(model: str, data: str | tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Judge and print; options of single runs (rank, epochs, …) do not count here, which trains several."""
    from ..train.complexity import judge_complexity

    with steps() as announce:
        found = judge_complexity(
            model, data, announce=announce, **{name: value for name, value in options.items() if name in _TAKEN}
        )
    if as_json:
        print_json(asdict(found))
        return
    table(
        f"What was trained, judged on {found.judged_rows} rows out of fold (most frequent label: {found.majority:.3f})",
        ("what", "accuracy [95 %]", "against lora r=8 on all rows [95 %]", "steps", "s"),
        [
            (row.what, spread(row.accuracy), spread(row.change, "+"), str(row.steps), f"{row.seconds:.0f}")
            for row in found.evidence
        ],
    )
    click.echo(f"verdict: {found.finding}. {found.sentence[0].upper()}{found.sentence[1:]}")
