"""Commands that measure and judge: validate, bench, check, targets."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import click

from ..data import Examples, PromptRows
from ..errors import InputError
from .common import (
    Command,
    bundle_argument,
    guarded,
    json_option,
    label_option,
    named,
    option,
    pair_option,
    path_option,
    print_json,
    text_option,
)
from .show import bar, print_report, steps

target_option = option(
    "--target", section="What", default="linux-x64-cpu", metavar="TARGET", help="A shipped target, or a target file."
)
on_option = option(
    "--on",
    section="What",
    metavar="EXECUTOR",
    show_default="the target's",
    help="Execute there instead: local, arm64, web, qnn, adb or ssh://user@host.",
)
report_option = path_option(
    "--report", show_default="BUNDLE/report", help="Folder for the JSON, Markdown and JUnit report."
)
data_option = option(
    "--data",
    section="Data",
    multiple=True,
    metavar="NAME=FILE",
    help="Labelled rows (.csv, .tsv, .jsonl) of an adapter, or prompts of a language model's. May be repeated.",
)
adapter_names = option(
    "--adapter",
    "adapters",
    section="What",
    multiple=True,
    metavar="NAME",
    show_default="all",
    help="Only this adapter. May be repeated.",
)
variant_names = option(
    "--variant",
    "variants",
    section="What",
    multiple=True,
    metavar="NAME",
    show_default="all that apply",
    help="Only this variant. May be repeated.",
)
shape_option = option(
    "--shape",
    "shapes",
    section="What",
    multiple=True,
    metavar="BATCHxTOKENS",
    show_default="those with a budget",
    help="Only this input shape. May be repeated.",
)
threads_option = option(
    "--threads",
    section="What",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="the target's",
    help="ONNX Runtime's intra-op threads.",
)


def device_data(
    bundle: Path, data: tuple[str, ...], text: str, label: str, pair: str | None
) -> dict[str, Examples] | dict[str, PromptRows]:
    """The ``--data NAME=FILE`` pairs as a bundle's task has them: labelled rows, or what to generate from."""
    from ..bundle import read_bundle
    from ..data import read_prompts

    if read_bundle(bundle).manifest.task != "text-generation":
        return examples(data, text, label, pair)
    return {name: read_prompts(path, text=text) for name, path in named(data, "--data").items()}


def labelled(bundle: Path, data: tuple[str, ...], text: str, label: str, pair: str | None) -> dict[str, Examples]:
    """The ``--data NAME=FILE`` pairs as labelled rows; :class:`InputError` for a language model, whose data have no labels."""
    from ..bundle import read_bundle

    if data and read_bundle(bundle).manifest.task == "text-generation":
        raise InputError(
            f"{bundle} is a language model's: --data with labels are for classifiers. Its prompts are compared by: edgepeft "
            "validate BUNDLE --target TARGET --data NAME=FILE"
        )
    return examples(data, text, label, pair)


def examples(data: tuple[str, ...], text: str, label: str, pair: str | None) -> dict[str, Examples]:
    """The ``--data NAME=FILE`` pairs, read as labelled rows."""
    from ..data import read_examples

    files = named(data, "--data")
    return {name: read_examples(path, text=text, label=label, pair=pair) for name, path in files.items()}


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


@click.command(cls=Command)
@bundle_argument
@target_option
@adapter_names
@variant_names
@shape_option
@threads_option
@option(
    "--processes",
    section="What",
    default=3,
    type=click.IntRange(min=2),
    metavar="N",
    help="Fresh processes for each variant.",
)
@on_option
@report_option
@json_option
@guarded
def bench(
    bundle: Path,
    target: str,
    adapters: tuple[str, ...],
    variants: tuple[str, ...],
    shapes: tuple[str, ...],
    threads: int | None,
    processes: int,
    on: str | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Measure speed, memory and size against a target.

    Latency, load, swap and peak memory are measured in fresh processes and held against the target's budgets.
    Exit code 0: within budget; 1: over; 3: the measurement cannot tell, or nothing here can execute the target and only
    static checks were made.
    """
    from ..devices import bench_on as run
    from ..targets import load_target

    loaded = load_target(target)
    with bar() as announce:
        result = run(
            bundle,
            loaded,
            on=on,
            adapters=list(adapters) or None,
            variants=list(variants) or None,
            shapes=list(shapes) or None,
            threads=threads,
            processes=processes,
            progress=announce,
        )
    finish(result, report, bundle, "bench", as_json)


@click.command(cls=Command)
@bundle_argument
@path_option(
    "--baseline",
    section="What",
    required=True,
    help="A bundle, or the JSON report that bench saved on this host.",
)
@target_option
@data_option
@text_option
@label_option
@pair_option
@adapter_names
@variant_names
@shape_option
@threads_option
@on_option
@report_option
@json_option
@guarded
def check(
    bundle: Path,
    baseline: Path,
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
    report: Path | None,
    as_json: bool,
) -> None:
    """Gate a bundle against a baseline, for CI.

    Fails where the bundle is slower or less accurate than the baseline, or over the target's budgets.
    Latency is compared in interleaved A B B A runs of fresh processes. Exit code 0: pass; 1: fail; 3: inconclusive.
    """
    from ..devices import check_on as run
    from ..targets import load_target

    with bar() as announce:
        result = run(
            bundle,
            baseline,
            load_target(target),
            on=on,
            adapters=list(adapters) or None,
            variants=list(variants) or None,
            shapes=list(shapes) or None,
            threads=threads,
            data=labelled(bundle, data, text, label, pair) or None,
            progress=announce,
        )
    finish(result, report, bundle, "check", as_json)


def finish(report, folder: Path | None, bundle: Path, stem: str, as_json: bool) -> None:  # type: ignore[no-untyped-def] # targets.Report, not imported at start
    """Write the report, print it, and exit with its verdict\'s code."""
    from ..bundle import staying
    from ..report import to_json, write_reports

    # A command that changes the bundle meanwhile would take the report away with the old folder.
    with staying(bundle) if folder is None else nullcontext():
        files = write_reports(folder or bundle / "report", stem, report)
    if as_json:
        print_json(json.loads(to_json(report)))
    else:
        print_report(report)
        click.echo(f"reports: {files.json}, {files.markdown.name}, {files.junit.name}")
    sys.exit(report.verdict.exit_code)
