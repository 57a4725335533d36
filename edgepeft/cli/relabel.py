"""``edgepeft relabel``: names for labels, and what outputs mean."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from .guarded import guarded
from .head_options import head_options, parse_heads
from .options import bundle_argument, json_option, lock_option
from .show import print_json


@cloup.command()
@bundle_argument
@head_options
@lock_option
@json_option
@guarded
def relabel(
    bundle: Path,
    labels: tuple[str, ...],
    problem_types: tuple[str, ...],
    activations: tuple[str, ...],
    lock_timeout: float,
    as_json: bool,
) -> None:
    """Name the labels of adapters and what their outputs mean.

    No weight changes. NAME is an adapter, or base for the head of the base itself.
    """
    from ..bundle import head_of
    from ..pipeline import relabel as run

    heads = parse_heads(labels, problem_types, activations)
    manifest = run(bundle, heads, lock_timeout=lock_timeout).manifest
    now = {name: head_of(manifest, name if name in manifest.adapters else None) for name in heads}
    if as_json:
        print_json(
            {
                n: {"labels": h.labels, "problem_type": h.problem_type, "activation": h.activation}
                for n, h in now.items()
            }
        )
        return
    for name, head in now.items():
        width = len(head.labels or ())
        click.echo(f"{bundle}: {name}: {', '.join(head.labels or ())} ({head.kind(width)}, {head.function(width)})")
