"""``edgepeft check``: a bundle gated against a baseline."""

from __future__ import annotations

from pathlib import Path

import click
import cloup
from cloup import option, option_group

from .guarded import guarded
from .options import (
    adapter_names,
    bench_threads_option,
    bundle_argument,
    data_option,
    json_option,
    label_option,
    on_option,
    pair_option,
    report_option,
    shape_option,
    target_option,
    text_option,
    variant_names,
)
from .show import bar, finish, measured
from .values import labelled


@cloup.command()
@bundle_argument
@option_group(
    "What",
    option(
        "--baseline",
        type=click.Path(),
        required=True,
        metavar="PATH|URL",
        help="A bundle, or what bench saved on this host: its JSON report, or its history, also at http:// or https://.",
    ),
    target_option,
    adapter_names,
    variant_names,
    shape_option,
    bench_threads_option,
    on_option,
    option(
        "--budget-s",
        type=click.FloatRange(min=1),
        metavar="SECONDS",
        show_default="the target's rounds and seconds",
        help="Measure latency until all is decided, but no longer than this.",
    ),
)
@option_group("Data", data_option, text_option, label_option, pair_option)
@report_option
@json_option
@guarded
def check(
    bundle: Path,
    baseline: str,
    target: str,
    data: tuple[str, ...],
    text: str,
    label: str,
    pair: str | None,
    adapters: tuple[str, ...],
    variants: tuple[str, ...],
    shapes: tuple[str, ...],
    threads: int | None,
    on: str | None,
    budget_s: float | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Gate a bundle against a baseline, for CI.

    Fails where the bundle is slower or less accurate than the baseline, or over the target's budgets.
    Latency is compared in interleaved A B B A runs of fresh processes, with a saved report in sessions of them. It passes
    only where the whole interval is within the tolerance, and fails only where it is beyond.
    Exit code 0: pass; 1: fail; 3: inconclusive.
    """
    from ..devices import check_on as run
    from ..targets import load_target

    loaded = load_target(target)
    if budget_s is not None:
        loaded = loaded.model_copy(update={"check": loaded.check.for_seconds(budget_s)})
    with measured(report, bundle, "check") as partial, bar() as announce:
        result = run(
            bundle,
            baseline,
            loaded,
            on=on,
            adapters=list(adapters) or None,
            variants=list(variants) or None,
            shapes=list(shapes) or None,
            threads=threads,
            data=labelled(bundle, data, text, label, pair) or None,
            progress=announce,
            keep=partial.keep,
        )
    finish(result, report, bundle, "check", as_json)
