"""``edgepeft validate``: a bundle compared with PEFT."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError
from .guarded import guarded
from .options import (
    Command,
    bundle_argument,
    data_option,
    json_option,
    label_option,
    option,
    pair_option,
    report_option,
    text_option,
    variant_names,
)
from .show import finish, steps
from .values import device_data, labelled, named


@click.command(cls=Command)
@bundle_argument
@data_option
@text_option
@label_option
@pair_option
@variant_names
@click.option(
    "--max-drop",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Accuracy a variant may lose against PEFT.",
)
@option(
    "--adapter",
    "adapters",
    section="Reference",
    multiple=True,
    metavar="NAME=PATH",
    show_default="where the manifest says",
    help="The PEFT checkpoint of an adapter. May be repeated.",
)
@option(
    "--model",
    section="Reference",
    metavar="MODEL",
    show_default="as the manifest says",
    help="The base model: a folder or a Hugging Face id.",
)
@option("--no-reference", section="Reference", is_flag=True, help="Do not compare with PEFT (needs no torch).")
@option(
    "--target",
    section="Device",
    metavar="TARGET",
    help="Execute there, and compare with a native run here too: a shipped target, or a target file.",
)
@option(
    "--on",
    section="Device",
    metavar="EXECUTOR",
    show_default="the target's",
    help="Execute there instead: local, arm64, web, qnn, adb or ssh://user@host.",
)
@option(
    "--rows",
    section="Device",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="200, or 24 under emulation; prompts 8, or 2",
    help="Rows of each adapter's --data to run there.",
)
@option(
    "--max-new-tokens",
    section="Device",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="32",
    help="Greedy tokens after each prompt, of a language model.",
)
@report_option
@json_option
@guarded
def validate(
    bundle: Path,
    data: tuple[str, ...],
    text: str,
    label: str,
    pair: str | None,
    adapters: tuple[str, ...],
    model: str | None,
    variants: tuple[str, ...],
    no_reference: bool,
    target: str | None,
    on: str | None,
    rows: int | None,
    max_new_tokens: int | None,
    max_drop: float,
    report: Path | None,
    as_json: bool,
) -> None:
    """Compare adapters with PEFT, on outputs and accuracy.

    Every adapter whose checkpoint is at hand must give PEFT's outputs on ragged padded batches, the base must come back
    bit for bit, and on labelled --data no variant may lose more than --max-drop. Exit code 0: all checks hold; 1: one does
    not; 2: the call was wrong; 3: nothing can execute the --target here, and only static checks were made.
    """
    from ..pipeline import validate as run
    from ..validate import validation_report

    if target is not None:
        from ..devices import validate_on
        from ..targets import load_target

        with steps() as announce:
            done = validate_on(
                bundle,
                load_target(target),
                on=on,
                data=device_data(bundle, data, text, label, pair),
                rows=rows,
                adapters=named(adapters, "--adapter"),
                base=model,
                variants=variants or None,
                reference=not no_reference,
                max_drop=max_drop,
                new_tokens=32 if max_new_tokens is None else max_new_tokens,
                progress=announce,
            )
        finish(done, report, bundle, f"validate-{load_target(target).name}", as_json)
        return
    if on is not None or rows is not None or max_new_tokens is not None:
        raise InputError("--on, --rows and --max-new-tokens go with --target")
    with steps() as announce:
        result = run(
            bundle,
            data=labelled(bundle, data, text, label, pair),
            adapters=named(adapters, "--adapter"),
            base=model,
            variants=variants or None,
            reference=not no_reference,
            max_drop=max_drop,
            progress=announce,
        )
    finish(validation_report(result, max_drop), report, bundle, "validate", as_json)
