"""Commands that make or change bundles: export, add, quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from .common import bundle_argument, force_option, guarded, json_option, megabytes, named, print_json, progress, table


@click.command()
@click.option("--model", required=True, help="The base: a folder or a Hugging Face id.")
@click.option(
    "--adapter", "adapters", multiple=True, metavar="NAME=PATH", help="An adapter: folder or Hugging Face id. Repeat."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The bundle folder to write.")
@click.option(
    "--mode",
    type=click.Choice(["swap", "merge"]),
    default="swap",
    show_default=True,
    help="swap: adapters as files beside one base. merge: folded into the weights, one bundle an adapter.",
)
@click.option(
    "--task",
    help="text-classification, token-classification, feature-extraction or fill-mask; else from the adapters or the model.",
)
@click.option(
    "--slots",
    type=click.Choice(["adapters", "all-linear"]),
    default="adapters",
    show_default=True,
    help="Where the base gets slots: where these adapters need them, or at every linear layer for adapters to come.",
)
@click.option("--onnx", type=click.Path(path_type=Path), help="An ONNX file of the same base, used instead of tracing.")
@force_option
@json_option
@guarded
def export(
    model: str,
    adapters: tuple[str, ...],
    out: Path,
    mode: Literal["swap", "merge"],
    task: str | None,
    slots: Literal["adapters", "all-linear"],
    onnx: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Export a base model and its adapters to a bundle.

    Every adapter is run in ONNX Runtime and compared with PEFT before the bundle takes its place.
    """
    from ..pipeline import export as run

    with progress(as_json) as announce:
        result = run(
            model,
            named(adapters, "--adapter"),
            out,
            mode=mode,
            task=task,
            slots=slots,
            onnx=onnx,
            force=force,
            announce=announce,
        )
    if as_json:
        print_json(
            {
                "bundles": [str(b.path) for b in result.bundles],
                "capture_parity": result.capture_parity,
                "parity": {p.adapter: p.max_difference for p in result.parity},
            }
        )
        return
    for bundle in result.bundles:
        click.echo(
            f"{bundle.path}: {megabytes(bundle.size())}, base {megabytes(bundle.size(bundle.variant_files('fp32')))}"
        )
    if result.parity:
        table(
            "Adapters against PEFT, ragged padded batches",
            ("adapter", "max |difference|", "changes the output"),
            [(p.adapter, p.max_difference, p.changes_output) for p in result.parity],
        )


@click.command()
@bundle_argument
@click.option(
    "--adapter",
    "adapter",
    required=True,
    metavar="NAME=PATH",
    help="A PEFT checkpoint (folder or Hugging Face id), or an .onnx / .onnx_adapter file that edgepeft exported.",
)
@click.option("--replace", is_flag=True, help="Replace an adapter of the same name.")
@force_option
@json_option
@guarded
def add(bundle: Path, adapter: str, replace: bool, force: bool, as_json: bool) -> None:
    """Add an adapter to a bundle. The base is not touched and torch is not needed."""
    from ..pipeline import add as run

    ((name, source),) = named([adapter], "--adapter").items()
    with progress(as_json) as announce:
        result = run(bundle, name, source, force=force, replace=replace, announce=announce)
    if as_json:
        print_json({"adapter": name, **result.entry.model_dump(mode="json"), "changes_output": result.changes_output})
        return
    click.echo(f"{name}: {result.entry.method}, {len(result.entry.tensors)} tensors, {megabytes(result.entry.bytes)}")
    if not result.changes_output:
        click.secho(
            f"WARNING: {name} changes nothing (its B matrices are zero: was it trained?)", fg="yellow", err=True
        )


@click.command()
@bundle_argument
@click.option("--variant", required=True, help="The variant to make: int8.")
@click.option("--replace", is_flag=True, help="Make it again where it exists.")
@json_option
@guarded
def quantize(bundle: Path, variant: str, replace: bool, as_json: bool) -> None:
    """Add a quantized variant of the base to a bundle; its adapters are unchanged and serve both."""
    from ..pipeline import quantize as run

    with progress(as_json) as announce:
        result = run(bundle, variant, replace=replace, announce=announce)
    share = result.quantized
    if as_json:
        print_json(
            {
                "variant": variant,
                "share": share.share,
                "quantized": share.quantized,
                "total": share.total,
                "bytes_before": result.bytes_before,
                "bytes_after": result.bytes_after,
            }
        )
        return
    click.echo(
        f"{variant}: {share.share:.1%} of {share.total:,} weights quantized, {megabytes(result.bytes_before)} -> "
        f"{megabytes(result.bytes_after)}. Check it with: edgepeft validate {bundle} --data NAME=FILE"
    )
