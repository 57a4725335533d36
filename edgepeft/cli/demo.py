"""``edgepeft demo``: all of it on real adapters."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import cloup
from cloup import option

from .guarded import guarded
from .options import PATH, json_option
from .show import print_json, steps, table


@cloup.command()
@option("--out", type=PATH, default="demo-out", help="The folder for what the demo makes.")
@option("--fresh", is_flag=True, help="Train and export again, even where --out has the results.")
@json_option
@guarded
def demo(out: Path, fresh: bool, as_json: bool) -> None:
    """Show everything on three real adapters.

    Trains three LoRA adapters over one MiniLM, exports one bundle, swaps, quantizes, validates and measures it. Fetches the
    pinned model and data once (into EDGEPEFT_CACHE, ~/.cache/edgepeft by default). Exit code 0: parity, accuracy
    and sizes are as they must be; 1: one is not. Latency is measured and told, but a busy machine fails nothing.
    """
    from ..demo.run import run_demo

    with steps() as announce:
        result = run_demo(out, fresh=fresh, announce=announce)
    if as_json:
        print_json(result.as_dict())
    else:
        for drawn in result.tables:
            table(drawn.title, drawn.columns, drawn.rows)
        for line in result.lines:
            click.echo(line)
    sys.exit(result.verdict.exit_code)
