"""``edgepeft quantize``: another precision of a bundle's base."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
import cloup
from cloup import option, option_group

from ..quantize.recipes import METHODS, RECIPES
from .guarded import guarded
from .options import bundle_argument, calibration_option, json_option, lock_option, pair_option, text_option
from .show import megabytes, print_json, steps, table, warn
from .values import calibration_data

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..data import Examples
    from ..pipeline import Front, Goal, Quality
    from ..validate import LanguageRows


@cloup.command()
@bundle_argument
@option_group(
    "What",
    option(
        "--variant",
        required=True,
        metavar="NAME",
        help=" ".join(f"{recipe.variant}: {recipe.purpose}." for recipe in RECIPES.values()),
    ),
)
@option_group(
    "Data",
    calibration_option,
    text_option,
    pair_option,
    option(
        "--rows",
        type=click.IntRange(min=1),
        default=64,
        metavar="N",
        help="Texts or sounds of each adapter to run, spread evenly.",
    ),
)
@option_group(
    "How q4 rounds",
    option(
        "--method",
        type=click.Choice(tuple(METHODS)),
        help="gptq fits weights to what the layers see: a language model's on a text that ships with edgepeft or on --data, "
        "others' on --data. mse and rtn run nothing. By default gptq where it can be.",
    ),
    option(
        "--heal",
        type=click.IntRange(min=0),
        default=0,
        metavar="RANK",
        help="Give each linear layer a low-rank correction in floats: better, larger, slower.",
    ),
    option(
        "--head-bits",
        type=click.Choice(("4", "8")),
        help="Bits of a head that writes tokens; 4 by default, 8 of speech.",
    ),
    option(
        "--layer-bits",
        type=click.Choice(("4", "8")),
        help="Bits of all other linear layers; 4 by default. With 8 the tables of embeddings alone keep 4, which suits encoders.",
    ),
    option(
        "--budget-mb",
        type=float,
        metavar="N",
        help="The best within that size of the variant's files: 4 or 8 bits and the size of blocks for each matrix, by what "
        "it costs the model's answers.",
    ),
    option(
        "--bits", type=float, metavar="N", help="The same, within that many bits a weight (4.3 to 9), scales included."
    ),
    option(
        "--max-kld",
        type=float,
        metavar="NATS",
        help="The smallest whose divergence from fp32 is at most this, on texts kept apart.",
    ),
    option(
        "--measure/--no-measure", default=True, help="Compare what writes with fp32, on texts or sounds kept apart."
    ),
)
@option(
    "--refit",
    is_flag=True,
    help="Fit every adapter with factors to the rounded weights afterwards, on --data or, of a language model, a text that ships "
    "with edgepeft; what helps is kept beside the adapter, for this variant alone.",
)
@option_group(
    "The cache",
    option(
        "--cache",
        type=click.Choice(("int8",)),
        help="Add the variant NAME_kv8: NAME, which there is already, with a language model's key/value cache in 8 bits, over the "
        "same weights.",
    ),
)
@option("--replace", is_flag=True, help="Make it again where it exists.")
@option("--dry-run", is_flag=True, help="Only tell the files, sizes, memory and time; write nothing.")
@lock_option
@json_option
@guarded
def quantize(
    bundle: Path,
    variant: str,
    data: tuple[str, ...],
    text: str,
    pair: str | None,
    rows: int,
    method: str | None,
    heal: int,
    head_bits: str | None,
    layer_bits: str | None,
    budget_mb: float | None,
    bits: float | None,
    max_kld: float | None,
    measure: bool,
    refit: bool,
    cache: str | None,
    replace: bool,
    dry_run: bool,
    lock_timeout: float,
    as_json: bool,
) -> None:
    """Add a quantized variant of the base to a bundle.

    The adapters are unchanged and serve every variant.
    """
    from ..bundle import read_bundle
    from ..pipeline import Goal
    from ..pipeline import quantize as run
    from ..pipeline import refit as fit
    from ..pipeline._refit import calibrating, refittable, require_refits

    goal = None
    if (budget_mb, bits, max_kld) != (None, None, None):
        goal = Goal(bytes=None if budget_mb is None else int(budget_mb * 1e6), bits=bits, divergence=max_kld)
    texts = calibration_data(bundle, data, text, pair)
    if cache is not None:
        if goal is not None or method or heal or head_bits or layer_bits or refit or dry_run or not measure:
            raise click.UsageError(
                "--cache is about the cache alone; it takes --variant, data, --rows and --replace only"
            )
        _cache(bundle, variant, texts, rows, replace, lock_timeout, as_json)
        return
    if dry_run:
        _plan(bundle, variant, texts, method, heal, head_bits, layer_bits, goal, replace, as_json)
        return
    if refit:
        require_refits(read_bundle(bundle))
    with steps() as announce:
        result = run(
            bundle,
            variant,
            data=calibrating(variant, method, texts) if refit else texts,
            rows=rows,
            method=method,
            heal=heal,
            head_bits=int(head_bits) if head_bits else None,
            layer_bits=int(layer_bits) if layer_bits else None,
            goal=goal,
            measure=measure,
            replace=replace,
            lock_timeout=lock_timeout,
            announce=announce,
        )
        refitted = []
        if refit and (names := refittable(result.bundle, texts)):
            refitted = [*fit(bundle, variant, names, data=texts, lock_timeout=lock_timeout, announce=announce)]
    share = result.quantized
    if result.warning:
        warn(result.warning)
    if as_json:
        print_json(
            {
                "variant": variant,
                "share": share.share,
                "quantized": share.quantized,
                "total": share.total,
                "bytes_before": result.bytes_before,
                "bytes_after": result.bytes_after,
                "merge_error": result.merge_error,
                "method": result.method,
                "quality": [asdict(each) for each in result.quality],
                "front": None if result.front is None else asdict(result.front),
                "refitted": [asdict(each) for each in refitted],
            }
        )
        return
    click.echo(
        f"{bundle}: {variant} holds {share.share:.1%} of {share.total:,} weights quantized, "
        f"{megabytes(result.bytes_before)} -> {megabytes(result.bytes_after)}"
    )
    if result.front is not None:
        _show_front(result.front)
    if result.quality:
        kind = "sounds" if result.bundle.manifest.hears else "texts"
        table(f"Against fp32, on {kind} kept apart", _columns("fp32"), [_row(each) for each in result.quality])
    for each in refitted:
        click.echo(f"{bundle}: {each}")
    if result.bundle.manifest.task.endswith("-classification"):
        click.echo(f"Check its accuracy with: edgepeft validate {bundle} --data NAME=FILE")


def _cache(
    bundle: Path, variant: str, texts: Mapping[str, Examples | LanguageRows], rows: int, replace: bool, lock_timeout: float,
    as_json: bool,
) -> None:  # fmt: skip
    """Add a variant with its cache in 8 bits."""
    from ..pipeline import quantize_cache

    with steps() as announce:
        result = quantize_cache(
            bundle, variant, data=texts, rows=rows, replace=replace, lock_timeout=lock_timeout, announce=announce
        )
    before, after = result.token_bytes
    if as_json:
        print_json(
            {
                "variant": result.variant,
                "source": result.source,
                "token_bytes_before": before,
                "token_bytes_after": after,
                "quality": [asdict(each) for each in result.quality],
            }
        )
        return
    click.echo(
        f"{bundle}: {result.variant} keeps {after:,} bytes a token in its cache, {result.source} {before:,}; both "
        "have the same weights"
    )
    table(
        f"Against {result.source}, on texts kept apart",
        _columns(result.source),
        [_row(each) for each in result.quality],
    )


def _plan(
    bundle: Path, variant: str, texts: Mapping[str, Examples | LanguageRows], method: str | None, heal: int, head_bits: str | None,
    layer_bits: str | None, goal: Goal | None, replace: bool, as_json: bool,
) -> None:  # fmt: skip
    """Tell what would be made."""
    from ..pipeline import plan_quantize

    plan = plan_quantize(
        bundle, variant, data=texts, method=method, heal=heal, head_bits=int(head_bits) if head_bits else None,
        layer_bits=int(layer_bits) if layer_bits else None, goal=goal, replace=replace,
    )  # fmt: skip
    if as_json:
        print_json({**asdict(plan), "bytes": plan.bytes, "fits": plan.fits, "dry_run": True})
        return
    table("", ("file", "about"), [(file.name, megabytes(file.bytes)) for file in plan.files])
    click.echo(f"{bundle}: would {'replace' if plan.replaces else 'get'} {variant}: {plan.recipe}")
    click.echo(
        f"about {megabytes(plan.bytes)} for {plan.weights:,} weights, which take {megabytes(plan.bytes_before)} in fp32; about "
        f"{plan.memory_mb / 1e3:.1f} GB of memory, {plan.disk_mb / 1e3:.2f} GB of disk at the peak ({plan.free_mb / 1e3:.1f} GB "
        f"are free), {plan.seconds:.0f} s of one core; nothing was written"
    )
    if not plan.fits:
        warn(f"the disk at {bundle} has too little room")


def _show_front(front: Front) -> None:
    """What was chosen among what could have been had."""
    forms = ", ".join(f"{count:,} in {form}" for form, count in front.forms.items())
    click.echo(f"{front.bits:.2f} bits a weight: {forms}")
    rows = [(f"{mb:.2f}", f"{loss:.4f}", "") for mb, loss in front.points[:: max(1, len(front.points) // SHOWN)]]
    chosen = (f"{front.chosen[0]:.2f}", f"{front.chosen[1]:.4f}", f"chosen: {front.measured:.4f} measured")
    table(
        "The front: what each size could reach",
        ("MB", "expected KL divergence", ""),
        sorted([*rows, chosen], key=lambda row: (float(row[0]), row[2])),
    )


#: Rows of the front that are printed.
SHOWN = 8


def _columns(whole: str) -> tuple[str, ...]:
    return ("adapter", "tokens", f"perplexity {whole}", "perplexity", "change", "KL divergence", "same top token")


def _row(quality: Quality) -> tuple[str, ...]:
    error = "" if quality.divergence_error is None else f" ± {quality.divergence_error:.4f}"
    return (
        quality.adapter or "(base)",
        f"{quality.tokens:,}",
        f"{quality.perplexity_before:.2f}",
        f"{quality.perplexity_after:.2f}",
        f"{quality.perplexity_after / quality.perplexity_before - 1:+.1%}",
        f"{quality.divergence:.4f}{error}",
        f"{quality.same_top:.1%}",
    )
