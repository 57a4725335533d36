"""``edgepeft export``: a base and its adapters as a bundle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import cloup
from cloup import option, option_group

from ..errors import InputError
from .guarded import guarded
from .head_options import head_options, parse_heads
from .options import (
    PATH,
    adapter_form_option,
    calibration_option,
    force_option,
    json_option,
    lock_option,
    pair_option,
    text_option,
)
from .show import megabytes, print_json, steps, table, warn
from .values import calibration_data, named

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..bundle import Bundle
    from ..data import Examples
    from ..pipeline import Exported
    from ..validate import LanguageRows


@cloup.command()
@option_group(
    "What",
    option("--model", required=True, metavar="MODEL", help="The base: a folder or a Hugging Face id."),
    option(
        "--adapter",
        "adapters",
        multiple=True,
        metavar="NAME=PATH",
        help="An adapter: a PEFT folder or a Hugging Face id, PATH#task=N for one task of a checkpoint with several. May be "
        "repeated.",
    ),
    option("--out", type=PATH, required=True, help="The bundle folder to write; an old bundle there is replaced."),
)
@option_group(
    "How",
    option(
        "--mode",
        type=click.Choice(["swap", "merge", "bake", "auto"]),
        default="swap",
        help="swap: adapters are files beside one base. merge: folded into its weights, OUT/NAME each where there are several. "
        "bake: traced as PEFT runs it, one model an adapter. auto: swap or merge, by which keeps more of it in one --variant.",
    ),
    option(
        "--slots",
        type=click.Choice(["adapters", "all-linear"]),
        default="adapters",
        help="Where adapters can be attached: where these need it, or at every linear layer, for adapters to come.",
    ),
    option(
        "--task",
        metavar="TASK",
        show_default="from the adapters, else from the model",
        help="text-generation, text-classification, token-classification, feature-extraction, fill-mask …",
    ),
    option(
        "--target",
        metavar="TARGET",
        help="Write only what this target gets: its variant, slot style, threads and file format, within its size budget.",
    ),
    option(
        "--variant",
        "variants",
        multiple=True,
        metavar="VARIANT",
        help="Write this precision only: fp32, int8, q8 or q4 (rounded to nearest); may be repeated. Language models are read "
        "block by block, so that memory and disk stay small. Without: fp32.",
    ),
    option(
        "--onnx",
        type=PATH,
        help="An ONNX file of the same base, used as it is: fp32, or a language model in 4 or 8 bits.",
    ),
    option(
        "--max-rank",
        type=click.IntRange(min=1),
        metavar="N",
        help="Cap the rank of methods that are factored by SVD; what is left out is reported.",
    ),
    option(
        "--pad-token",
        metavar="TOKEN",
        show_default="the tokenizer's, else an adapter's",
        help="Of a classifier over a decoder without a padding token: the one that adapters were trained with.",
    ),
    option(
        "--max-length",
        type=click.IntRange(min=2),
        metavar="TOKENS",
        show_default="a language model's own, up to 8192",
        help="Context of a language model; its rotary tables grow with it.",
    ),
)
@head_options
@adapter_form_option
@option(
    "--trust-remote-code",
    is_flag=True,
    help="Run Python code that comes with the base; without, such a base is refused.",
)
@option_group("Data", calibration_option, text_option, pair_option)
@force_option
@option(
    "--dry-run",
    is_flag=True,
    help="Only tell files, sizes, memory and disk, from headers; a --target is not looked at.",
)
@lock_option
@json_option
@guarded
def export(
    model: str,
    adapters: tuple[str, ...],
    out: Path,
    mode: Literal["swap", "merge", "bake", "auto"],
    slots: Literal["adapters", "all-linear"],
    task: str | None,
    target: str | None,
    variants: tuple[str, ...],
    onnx: Path | None,
    max_rank: int | None,
    max_length: int | None,
    pad_token: str | None,
    labels: tuple[str, ...],
    problem_types: tuple[str, ...],
    activations: tuple[str, ...],
    form: Literal["auto", "fp32", "fp16", "int8"],
    trust_remote_code: bool,
    data: tuple[str, ...],
    text: str,
    pair: str | None,
    force: bool,
    dry_run: bool,
    lock_timeout: float,
    as_json: bool,
) -> None:
    """Export a base and its adapters as a bundle.

    Every adapter is run in ONNX Runtime and compared with PEFT before the bundle takes its place.
    """
    wanted = named(adapters, "--adapter")
    if dry_run:
        _plan(model, wanted, out, "swap" if mode == "auto" else mode, variants, form, as_json)
        return
    from functools import partial

    from ..pipeline import export_variants, export_whole
    from ..targets import load_target

    run: Callable[..., Exported] = export_whole
    if mode == "auto":
        if target is not None or len(variants) != 1:
            raise InputError("--mode auto compares both ways in one precision: give one --variant, and no --target")
        run = _auto(variants[0], calibration_data(None, data, text, pair))
    elif target is not None:
        from ..pipeline import export_for

        if variants:
            raise InputError("--target chooses the variant itself; leave --variant out")
        run = partial(export_for, load_target(target), data=calibration_data(None, data, text, pair))
    elif data:
        raise InputError("--data is for variants that a --target asks for; quantize the bundle with it afterwards")
    elif variants:
        run = partial(export_variants, variants)
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
            pad_token=int(pad_token) if pad_token is not None and pad_token.isdecimal() else pad_token,
            heads=parse_heads(labels, problem_types, activations),
            force=force,
            trust_remote_code=trust_remote_code,
            lock_timeout=lock_timeout,
            announce=announce,
        )
        bundles = tuple(_stored(each, form, lock_timeout, announce) for each in result.bundles)
    if as_json:
        print_json(
            {
                "bundles": [str(b.path) for b in bundles],
                "bytes": [b.size() for b in bundles],
                "capture_parity": result.capture_parity,
                "parity": {p.adapter: p.max_difference for p in result.parity},
                "allowed": {p.adapter: p.allowed for p in result.parity},
                "changes_output": {p.adapter: p.changes_output for p in result.parity},
            }
        )
        return
    if result.parity:
        table(
            "Parity with PEFT on ragged padded batches",
            ("adapter", "max |difference|", "allowed", "changes the output"),
            [(p.adapter, p.max_difference, p.allowed, p.changes_output) for p in result.parity],
        )
    for bundle in bundles:
        base = megabytes(bundle.size(bundle.variant_files(bundle.variant()[0])))
        each = ", ".join(f"{n} {megabytes(a.bytes)}" for n, a in bundle.manifest.adapters.items())
        forms = f"; adapters, each in two forms of this size: {each}" if each else ""
        click.echo(f"{bundle.path}: {megabytes(bundle.size())} on disk (base {base}{forms})")


def _auto(variant: str, data: Mapping[str, Examples | LanguageRows]) -> Callable[..., Exported]:
    """``export``, with the mode chosen."""
    from ..pipeline import export_auto

    def run(*given: Any, mode: str, **options: Any) -> Exported:
        return export_auto(variant, *given, data=data, **options)[0]

    return run


def _stored(
    bundle: Bundle, form: Literal["auto", "fp32", "fp16", "int8"], lock_timeout: float, announce: Callable[[str], None]
) -> Bundle:
    """The bundle with its adapters in that form."""
    if form == "fp32" or not bundle.manifest.adapters:
        return bundle
    from ..bundle import read_bundle
    from ..pipeline import store_adapters

    store_adapters(bundle.path, form, lock_timeout=lock_timeout, announce=announce)
    return read_bundle(bundle.path)


def _plan(
    model: str,
    adapters: dict[str, str],
    out: Path,
    mode: Literal["swap", "merge", "bake"],
    variants: tuple[str, ...],
    form: Literal["auto", "fp32", "fp16", "int8"],
    as_json: bool,
) -> None:
    from ..pipeline import plan_export

    plan = plan_export(model, adapters, out, mode=mode, variants=variants, form=form)
    if as_json:
        print_json({"bundle": str(out), **asdict(plan), "bytes": plan.bytes, "fits": plan.fits, "dry_run": True})
        return
    table("", ("file", "about"), [(file.name, megabytes(file.bytes)) for file in plan.files])
    click.echo(
        f"{out}: would get about {megabytes(plan.bytes)}{' in place of the bundle there' if plan.replaces else ''} "
        f"({plan.parameters:,} parameters in {', '.join(plan.variants)}, mode {mode})"
    )
    click.echo(
        f"about {plan.memory_mb / 1e3:.1f} GB of memory and {plan.disk_mb / 1e3:.2f} GB of disk at the peak, and "
        f"{plan.minutes:.1f} minutes; {plan.free_mb / 1e3:.1f} GB of disk are free; nothing was written"
    )
    if not plan.fits:
        warn(f"the {'disk' if plan.disk_mb > plan.free_mb else 'memory'} has too little room for {out}")
