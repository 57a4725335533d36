"""Commands that make or change bundles: export, add, remove, blend, quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from ..errors import InputError
from .common import (
    Command,
    bundle_argument,
    calibration_option,
    calibration_texts,
    force_option,
    guarded,
    json_option,
    lock_option,
    named,
    option,
    pair_option,
    parse_weights,
    path_option,
    print_json,
    text_option,
)
from .show import megabytes, steps, table, warn

_UNTRAINED = "changes nothing (its B matrices are zero: was it trained?)"


@click.command(cls=Command)
@option("--model", section="What", required=True, metavar="MODEL", help="The base: a folder or a Hugging Face id.")
@option(
    "--adapter",
    "adapters",
    section="What",
    multiple=True,
    metavar="NAME=PATH",
    help="An adapter: a PEFT folder or a Hugging Face id, PATH#task=N for one task of a checkpoint with several. May be "
    "repeated.",
)
@path_option(
    "--out", section="What", required=True, help="The bundle folder to write; an old bundle there is replaced."
)
@option(
    "--mode",
    section="How",
    type=click.Choice(["swap", "merge", "bake"]),
    default="swap",
    help="swap: adapters are files beside one base. merge: folded into its weights, OUT/NAME each where there are several. "
    "bake: traced as PEFT runs it, one model an adapter, for methods that change no weights; language models too.",
)
@option(
    "--slots",
    section="How",
    type=click.Choice(["adapters", "all-linear"]),
    default="adapters",
    help="Where adapters can be attached: where these need it, or at every linear layer, for adapters to come.",
)
@option(
    "--task",
    section="How",
    metavar="TASK",
    show_default="from the adapters, else from the model",
    help="text-generation, text-classification, token-classification, feature-extraction, fill-mask …",
)
@option(
    "--target",
    section="How",
    metavar="TARGET",
    help="Write only what this target gets: its variant, slot style, threads and file format, within its size budget.",
)
@path_option(
    "--onnx",
    section="How",
    help="An ONNX file of the same base, used as it is: fp32, or a language model in 4 or 8 bits.",
)
@option(
    "--max-rank",
    section="How",
    type=click.IntRange(min=1),
    help="Cap the rank of methods that are factored by SVD; what is left out is reported.",
)
@option(
    "--max-length",
    section="How",
    type=click.IntRange(min=2),
    metavar="TOKENS",
    show_default="a language model's own, up to 8192",
    help="Context of a language model; its rotary tables grow with it.",
)
@calibration_option
@text_option
@pair_option
@force_option
@lock_option
@json_option
@guarded
def export(
    model: str,
    adapters: tuple[str, ...],
    out: Path,
    mode: Literal["swap", "merge", "bake"],
    slots: Literal["adapters", "all-linear"],
    task: str | None,
    target: str | None,
    onnx: Path | None,
    max_rank: int | None,
    max_length: int | None,
    data: tuple[str, ...],
    text: str,
    pair: str | None,
    force: bool,
    lock_timeout: float,
    as_json: bool,
) -> None:
    """Export a base and its adapters as a bundle.

    Every adapter is run in ONNX Runtime and compared with PEFT before the bundle takes its place.
    """
    wanted = named(adapters, "--adapter")
    from functools import partial

    from ..pipeline import export as run
    from ..targets import load_target

    if target is not None:
        from ..pipeline import export_for

        run = partial(export_for, load_target(target), data=calibration_texts(data, text, pair))
    elif data:
        raise InputError("--data is for variants that a --target asks for; quantize the bundle with it afterwards")
    with steps() as announce:
        result = run(
            model,
            wanted,
            out,
            mode=mode,
            task=task,
            slots=slots,
            onnx=onnx,
            max_rank=max_rank,
            max_length=max_length,
            force=force,
            lock_timeout=lock_timeout,
            announce=announce,
        )
    if as_json:
        print_json(
            {
                "bundles": [str(b.path) for b in result.bundles],
                "bytes": [b.size() for b in result.bundles],
                "capture_parity": result.capture_parity,
                "parity": {p.adapter: p.max_difference for p in result.parity},
                "changes_output": {p.adapter: p.changes_output for p in result.parity},
            }
        )
        return
    if result.parity:
        table(
            "Parity with PEFT on ragged padded batches",
            ("adapter", "max |difference|", "changes the output"),
            [(p.adapter, p.max_difference, p.changes_output) for p in result.parity],
        )
    for bundle in result.bundles:
        base = megabytes(bundle.size(bundle.variant_files(bundle.variant()[0])))
        each = ", ".join(f"{n} {megabytes(a.bytes)}" for n, a in bundle.manifest.adapters.items())
        click.echo(f"{bundle.path}: {megabytes(bundle.size())} (base {base}{'; adapters: ' + each if each else ''})")


@click.command(cls=Command)
@bundle_argument
@option(
    "--adapter",
    section="What",
    required=True,
    metavar="NAME=PATH",
    help="A PEFT checkpoint (folder or Hugging Face id, PATH#task=N for one of its tasks), or an .onnx / .onnx_adapter "
    "file that edgepeft exported.",
)
@click.option("--replace", is_flag=True, help="Replace an adapter of the same name.")
@force_option
@lock_option
@json_option
@guarded
def add(bundle: Path, adapter: str, replace: bool, force: bool, lock_timeout: float, as_json: bool) -> None:
    """Add an adapter to a bundle.

    The base is not touched and torch is not imported.
    """
    ((name, source),) = named([adapter], "--adapter").items()
    from ..pipeline import add as run

    with steps() as announce:
        result = run(bundle, name, source, force=force, replace=replace, lock_timeout=lock_timeout, announce=announce)
    if not result.changes_output:
        warn(f"{name} {_UNTRAINED}")
    entry = result.entry
    if as_json:
        print_json({"adapter": name, **entry.model_dump(mode="json"), "changes_output": result.changes_output})
        return
    labels = f", labels {', '.join(entry.labels)}" if entry.labels else ""
    click.echo(
        f"{bundle}: added {name} ({entry.method}, {len(entry.tensors)} tensors, {megabytes(entry.bytes)}{labels})"
    )


@click.command(cls=Command)
@bundle_argument
@option("--adapter", section="What", metavar="NAME", help="The adapter to remove.")
@option("--variant", section="What", metavar="NAME", help="The variant to remove; the last one stays.")
@lock_option
@json_option
@guarded
def remove(bundle: Path, adapter: str | None, variant: str | None, lock_timeout: float, as_json: bool) -> None:
    """Remove an adapter or a variant from a bundle.

    Its files go with it. The others are unchanged.
    """
    from ..bundle import read_bundle
    from ..pipeline import remove as run

    before = read_bundle(bundle)
    after = run(bundle, adapter, variant=variant, lock_timeout=lock_timeout)
    gone = sorted(before.manifest.files.keys() - after.manifest.files.keys())
    freed = before.size(gone)
    if as_json:
        print_json({"adapter": adapter, "variant": variant, "files": gone, "bytes": freed})
        return
    click.echo(f"{bundle}: removed {adapter or variant} ({len(gone)} files, {megabytes(freed)})")


@click.command(cls=Command)
@bundle_argument
@click.argument("weights", nargs=-1, required=True, metavar="NAME=WEIGHT...")
@option(
    "--out",
    section="What",
    required=True,
    metavar="NAME|FILE",
    help="The adapter to write into the bundle, or an .onnx_adapter file.",
)
@option(
    "--head",
    section="What",
    metavar="NAME",
    help="The adapter whose head (and biases and norms) the blend takes where they differ.",
)
@click.option("--replace", is_flag=True, help="Replace an adapter or file of the same name.")
@lock_option
@json_option
@guarded
def blend(
    bundle: Path,
    weights: tuple[str, ...],
    out: str,
    head: str | None,
    replace: bool,
    lock_timeout: float,
    as_json: bool,
) -> None:
    """Write a weighted sum of adapters as an adapter of its own.

    The sum is exact: ranks are set side by side. Weights may be negative (after --, as in: blend B --out c -- a=1 b=-0.5).
    """
    from ..pipeline import blend as run

    result = run(bundle, parse_weights(weights), out, head=head, replace=replace, lock_timeout=lock_timeout)
    if isinstance(result, Path):
        if as_json:
            print_json({"file": str(result)})
        else:
            click.echo(f"{result}: {', '.join(weights)}")
        return
    if not result.changes_output:
        warn(f"{out} changes nothing: its parts cancel")
    entry = result.entry
    if as_json:
        print_json({"adapter": out, **entry.model_dump(mode="json"), "changes_output": result.changes_output})
        return
    rank = max(entry.ranks.values(), default=0)
    click.echo(f"{bundle}: added {out} ({', '.join(weights)}; largest rank {rank}, {megabytes(entry.bytes)})")


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
