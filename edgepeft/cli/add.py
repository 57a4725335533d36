"""``edgepeft add``: one more adapter in a bundle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal

import click
import cloup
from cloup import option, option_group

from .guarded import guarded
from .head_options import head_options, parse_heads
from .options import (
    adapter_form_option,
    bundle_argument,
    dry_run_option,
    force_option,
    json_option,
    lock_option,
    pair_option,
    refit_data_option,
    text_option,
)
from .show import megabytes, print_json, steps, table, warn
from .values import named, refit_data

_UNTRAINED = "changes nothing (its B matrices are zero: was it trained?)"


@cloup.command()
@bundle_argument
@option_group(
    "What",
    option(
        "--adapter",
        required=True,
        metavar="NAME=PATH",
        help="A PEFT checkpoint (folder or Hugging Face id, PATH#task=N for one of its tasks), or an .onnx / .onnx_adapter "
        "file that edgepeft exported.",
    ),
)
@head_options
@adapter_form_option
@option_group(
    "Fitting to what ships",
    option(
        "--refit",
        multiple=True,
        metavar="VARIANT",
        help="Solve for its second factors again, so that it does on this variant's rounded weights what it does on fp32; kept "
        "beside it, for this variant alone, where texts kept apart say that it helps. May be repeated.",
    ),
    refit_data_option,
    text_option,
    pair_option,
)
@option("--replace", is_flag=True, help="Replace an adapter of the same name.")
@force_option
@dry_run_option
@lock_option
@json_option
@guarded
def add(
    bundle: Path,
    adapter: str,
    labels: tuple[str, ...],
    problem_types: tuple[str, ...],
    activations: tuple[str, ...],
    form: Literal["auto", "fp32", "fp16", "int8"],
    refit: tuple[str, ...],
    data: tuple[str, ...],
    text: str,
    pair: str | None,
    replace: bool,
    force: bool,
    dry_run: bool,
    lock_timeout: float,
    as_json: bool,
) -> None:
    """Add an adapter to a bundle.

    The base is not touched and torch is not imported.
    """
    ((name, source),) = named([adapter], "--adapter").items()
    from ..pipeline import add as run
    from ..pipeline import refit as fit
    from ..pipeline._heads import check_names
    from ..pipeline._refit import check_wanted

    heads = parse_heads(labels, problem_types, activations)
    check_names(heads, {name: source})
    check_wanted(bundle, name, refit, data, dry_run=dry_run)
    rows = refit_data(bundle, data, text, pair)

    with steps() as announce:
        result = run(
            bundle,
            name,
            source,
            force=force,
            replace=replace,
            head=heads.get(name),
            form=form,
            dry_run=dry_run,
            lock_timeout=lock_timeout,
            announce=announce,
        )
        refitted = [
            *(
                fit(bundle, variant, [name], data=rows, lock_timeout=lock_timeout, announce=announce)[0]
                for variant in refit
            )
        ]
    if not result.changes_output:
        warn(f"{name} {_UNTRAINED}")
    entry = result.entry
    if as_json:
        print_json({"adapter": name, **entry.model_dump(mode="json"), "changes_output": result.changes_output,
                    "files": result.files, "refitted": [asdict(each) for each in refitted], "dry_run": dry_run})  # fmt: skip
        return
    stored = "" if entry.form == "fp32" else f", stored in {entry.form}"
    shown = f", labels {', '.join(entry.labels)}" if entry.labels else ""
    both = sum(result.files.values())
    what = (
        f"{entry.method}, {len(entry.tensors)} tensors, {megabytes(entry.bytes)} as .onnx_adapter, {megabytes(both)} on disk with "
        f".onnx{stored}{shown}"
    )
    if dry_run:
        table("", ("file", "size"), [(file, megabytes(size)) for file, size in result.files.items()])
        click.echo(f"{bundle}: would add {name} ({what}); nothing was changed")
    else:
        click.echo(f"{bundle}: added {name} ({what})")
        for each in refitted:
            click.echo(f"{bundle}: {each}")
