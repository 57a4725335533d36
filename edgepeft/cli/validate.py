"""``edgepeft validate``: a bundle compared with PEFT."""

from __future__ import annotations

from pathlib import Path

import click
import cloup
from cloup import option, option_group

from ..errors import InputError
from ..executors import executor_names
from .guarded import guarded
from .options import (
    bundle_argument,
    data_option,
    json_option,
    label_option,
    pair_option,
    report_option,
    text_option,
    variant_names,
)
from .show import finish, measured, steps
from .values import checkpoints_or_names, device_data, judged_rows, rows_of


@cloup.command()
@bundle_argument
@option_group("What", variant_names)
@option_group(
    "Data",
    data_option,
    text_option,
    label_option,
    pair_option,
    option(
        "--general",
        multiple=True,
        metavar="FILE",
        help="Rows that no adapter was trained for: what is lost on them against --data, and against the base. May be repeated.",
    ),
    option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N rows of each file, spread evenly."),
)
@option_group(
    "Reference",
    option(
        "--adapter",
        "adapters",
        multiple=True,
        metavar="NAME[=PATH]",
        show_default="all, from where the manifest says",
        help="NAME=PATH: the PEFT checkpoint of an adapter. NAME: only this adapter. May be repeated.",
    ),
    option(
        "--model",
        metavar="MODEL",
        show_default="as the manifest says",
        help="The base model: a folder or a Hugging Face id.",
    ),
    option("--no-reference", is_flag=True, help="Do not compare with PEFT (needs no torch)."),
)
@option_group(
    "Device",
    option(
        "--target",
        metavar="TARGET",
        help="Execute there, and compare with a native run here too: a shipped target, or a target file.",
    ),
    option(
        "--on",
        metavar="EXECUTOR",
        show_default="the target's",
        help=f"Execute there instead: {executor_names(static=False)}.",
    ),
    option(
        "--rows",
        type=click.IntRange(min=1),
        metavar="N",
        show_default="200, or 24 under emulation; prompts 8, or 2",
        help="Rows of each adapter's --data to run there.",
    ),
    option(
        "--max-new-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        show_default="32",
        help="Greedy tokens after each prompt, of a language model.",
    ),
)
@option(
    "--max-drop",
    default=0.01,
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Accuracy a variant may lose against PEFT.",
)
@option(
    "--max-general-drop",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="What the score on --general may be below that on --data.",
)
@option(
    "--max-forgetting",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="What an adapter may take from the base on --general, or add to its perplexity.",
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
    general: tuple[str, ...],
    limit: int | None,
    adapters: tuple[str, ...],
    model: str | None,
    variants: tuple[str, ...],
    no_reference: bool,
    target: str | None,
    on: str | None,
    rows: int | None,
    max_new_tokens: int | None,
    max_drop: float,
    max_general_drop: float | None,
    max_forgetting: float | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Compare adapters with PEFT, on outputs and quality.

    Every adapter whose checkpoint is at hand must give PEFT's outputs on ragged padded batches, the base must come back
    bit for bit, and on labelled --data no variant may lose more than --max-drop. Every metric of the task is measured on
    --data with its interval, and variants are compared on the same rows. Exit code 0: all checks hold; 1: one does
    not; 2: the call was wrong; 3: nothing can execute the --target here, and only static checks were made.
    """
    from ..pipeline import validate as run
    from ..targets import GeneralizationRules
    from ..validate import validation_report

    checkpoints, only = checkpoints_or_names(adapters)
    elsewhere = [rows_of(bundle, path, text, label, pair, limit or rows) for path in general]
    limits = {"max_drop": max_general_drop, "max_forgetting": max_forgetting}
    given = {name: share for name, share in limits.items() if share is not None}
    if given and not general:
        raise InputError("--max-general-drop and --max-forgetting judge rows of --general FILE, and none are given")
    if target is not None:
        from ..devices import validate_on
        from ..targets import load_target

        if only or limit is not None:
            raise InputError("--adapter NAME without a path, and --limit, are not for --target; it has --rows")
        loaded = load_target(target)
        loaded = loaded.model_copy(update={"generalization": loaded.generalization.model_copy(update=given)})
        stem = f"validate-{loaded.name}"
        with measured(report, bundle, stem) as partial, steps() as announce:
            done = validate_on(
                bundle,
                loaded,
                on=on,
                data=device_data(bundle, data, text, label, pair),
                rows=rows,
                adapters=checkpoints,
                base=model,
                variants=variants or None,
                reference=not no_reference,
                max_drop=max_drop,
                new_tokens=32 if max_new_tokens is None else max_new_tokens,
                general=elsewhere,
                inside=judged_rows(bundle, data, text, label, pair, rows) if general else {},
                progress=announce,
                keep=partial.keep,
            )
        finish(done, report, bundle, stem, as_json)
        return
    if on is not None or rows is not None or max_new_tokens is not None:
        raise InputError("--on, --rows and --max-new-tokens go with --target")
    with measured(report, bundle, "validate") as partial, steps() as announce:
        result = run(
            bundle,
            answers=(report or bundle / "report") / "validate.answers.db",
            data=judged_rows(bundle, data, text, label, pair, limit),
            adapters=checkpoints,
            only=only or None,
            base=model,
            variants=variants or None,
            reference=not no_reference,
            max_drop=max_drop,
            general=elsewhere,
            rules=GeneralizationRules(**given),
            progress=announce,
            keep=lambda make: partial.keep(lambda: None if (so_far := make()) is None else validation_report(so_far)),
        )
    finish(validation_report(result), report, bundle, "validate", as_json)
