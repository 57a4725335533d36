"""``edgepeft quantize``: another precision of a bundle's base."""

from __future__ import annotations

from pathlib import Path

import click
import cloup
from cloup import option, option_group

from ..quantize.recipes import RECIPES
from .guarded import guarded
from .options import bundle_argument, calibration_option, json_option, lock_option, pair_option, text_option
from .show import megabytes, print_json, steps, warn
from .values import calibration_texts


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
        help="Texts of each adapter to run, spread evenly.",
    ),
)
@option("--replace", is_flag=True, help="Make it again where it exists.")
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
    replace: bool,
    lock_timeout: float,
    as_json: bool,
) -> None:
    """Add a quantized variant of the base to a bundle.

    The adapters are unchanged and serve every variant.
    """
    from ..pipeline import quantize as run

    texts = calibration_texts(data, text, pair)
    with steps() as announce:
        result = run(
            bundle, variant, data=texts, rows=rows, replace=replace, lock_timeout=lock_timeout, announce=announce
        )
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
            }
        )
        return
    click.echo(
        f"{bundle}: {variant} holds {share.share:.1%} of {share.total:,} weights quantized, "
        f"{megabytes(result.bytes_before)} -> {megabytes(result.bytes_after)}"
    )
    if result.bundle.manifest.task.endswith("-classification"):
        click.echo(f"Check its accuracy with: edgepeft validate {bundle} --data NAME=FILE")
