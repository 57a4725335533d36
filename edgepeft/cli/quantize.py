"""``edgepeft quantize``: another precision of a bundle's base."""

from __future__ import annotations

from pathlib import Path

import click

from .guarded import guarded
from .options import Command, bundle_argument, calibration_option, json_option, option, pair_option, text_option
from .show import megabytes, print_json, steps, warn
from .values import calibration_texts


@click.command(cls=Command)
@bundle_argument
@option(
    "--variant",
    section="What",
    required=True,
    metavar="NAME",
    help="int8: 8 bits, for encoders. q4: 4 bits, for language models. w8a16: weights in 8 bits and activations in 16, for "
    "NPUs; wants --data.",
)
@calibration_option
@text_option
@pair_option
@option(
    "--rows",
    section="Data",
    type=click.IntRange(min=1),
    default=64,
    metavar="N",
    help="Texts of each adapter to run, spread evenly.",
)
@click.option("--replace", is_flag=True, help="Make it again where it exists.")
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
    as_json: bool,
) -> None:
    """Add a quantized variant of the base to a bundle.

    The adapters are unchanged and serve every variant.
    """
    from ..pipeline import quantize as run

    texts = calibration_texts(data, text, pair)
    with steps() as announce:
        result = run(bundle, variant, data=texts, rows=rows, replace=replace, announce=announce)
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
