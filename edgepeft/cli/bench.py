"""``edgepeft bench``: speed, memory and size against a target."""

from __future__ import annotations

from pathlib import Path

import click
import cloup
from cloup import option, option_group

from .guarded import guarded
from .options import (
    PATH,
    adapter_names,
    bench_threads_option,
    bundle_argument,
    json_option,
    on_option,
    report_option,
    shape_option,
    target_option,
    variant_names,
)
from .show import bar, finish, measured


@cloup.command()
@bundle_argument
@option_group(
    "What",
    target_option,
    adapter_names,
    variant_names,
    shape_option,
    bench_threads_option,
    option(
        "--processes",
        default=3,
        type=click.IntRange(min=2),
        metavar="N",
        help="Fresh processes for each variant.",
    ),
    option(
        "--sessions",
        default=1,
        type=click.IntRange(min=1),
        metavar="N",
        help="Run the processes so many times, some time apart: a baseline that decides more.",
    ),
    option(
        "--pause-s",
        default=30.0,
        type=click.FloatRange(min=0, max=86_400),
        metavar="SECONDS",
        help="Time between two sessions.",
    ),
    on_option,
    option(
        "--history", type=PATH, metavar="FILE", help="Add the run to this history (SQLite; made where it is not there)."
    ),
)
@report_option
@json_option
@guarded
def bench(
    bundle: Path,
    target: str,
    adapters: tuple[str, ...],
    variants: tuple[str, ...],
    shapes: tuple[str, ...],
    threads: int | None,
    processes: int,
    sessions: int,
    pause_s: float,
    on: str | None,
    history: Path | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Measure speed, memory and size against a target.

    Latency, load, swap and peak memory are measured in fresh processes and held against the target's budgets.
    Exit code 0: within budget; 1: over; 3: the measurement cannot tell, or nothing here can execute the target and only
    static checks were made.
    """
    from ..devices import bench_on as run
    from ..targets import load_target

    loaded = load_target(target)
    with measured(report, bundle, "bench") as partial, bar() as announce:
        result = run(
            bundle,
            loaded,
            on=on,
            adapters=list(adapters) or None,
            variants=list(variants) or None,
            shapes=list(shapes) or None,
            threads=threads,
            processes=processes,
            sessions=sessions,
            pause_s=pause_s,
            history=history,
            progress=announce,
            keep=partial.keep,
        )
    finish(result, report, bundle, "bench", as_json)
