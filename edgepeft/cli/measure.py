"""Commands that measure and judge: validate, bench, check, targets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from ..data import Examples
from ..errors import InputError
from .common import (
    Command,
    Group,
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
from .show import bar, print_report, steps, table

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
    help="Labelled rows (.csv, .tsv, .jsonl) of an adapter. May be repeated.",
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


def _examples(data: tuple[str, ...], text: str, label: str, pair: str | None) -> dict[str, Examples]:
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
    show_default="200, or 24 under emulation",
    help="Rows of each adapter's --data to run there.",
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
                data=_examples(data, text, label, pair),
                rows=rows,
                adapters=named(adapters, "--adapter"),
                base=model,
                variants=variants or None,
                reference=not no_reference,
                max_drop=max_drop,
                progress=announce,
            )
        _finish(done, report, bundle, f"validate-{load_target(target).name}", as_json)
        return
    if on is not None or rows is not None:
        raise InputError("--on and --rows go with --target")
    with steps() as announce:
        result = run(
            bundle,
            data=_examples(data, text, label, pair),
            adapters=named(adapters, "--adapter"),
            base=model,
            variants=variants or None,
            reference=not no_reference,
            max_drop=max_drop,
            progress=announce,
        )
    _finish(validation_report(result, max_drop), report, bundle, "validate", as_json)


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
    _finish(result, report, bundle, "bench", as_json)


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
            data=_examples(data, text, label, pair) or None,
            progress=announce,
        )
    _finish(result, report, bundle, "check", as_json)


def _finish(report, folder: Path | None, bundle: Path, stem: str, as_json: bool) -> None:  # type: ignore[no-untyped-def] # targets.Report, not imported at start
    from ..report import to_json, write_reports

    files = write_reports(folder or bundle / "report", stem, report)
    if as_json:
        print_json(json.loads(to_json(report)))
    else:
        print_report(report)
        click.echo(f"reports: {files.json}, {files.markdown.name}, {files.junit.name}")
    sys.exit(report.verdict.exit_code)


@click.group(cls=Group)
def targets() -> None:
    """List kinds of device, their budgets, what runs them."""


@targets.command("list", cls=Command)
@json_option
@guarded
def list_(as_json: bool) -> None:
    """List the shipped targets."""
    from ..devices import find_place
    from ..targets import list_targets

    found = list_targets()
    if as_json:
        print_json([{**t.model_dump(mode="json"), "executes": find_place(t).executor is not None} for t in found])
        return
    rows = []
    for target in found:
        place = find_place(target)
        how = place.executor.name if place.executor is not None else "static only"
        summary = target.summary if target.status == "supported" else f"{target.summary} [{target.status}]"
        rows.append((target.name, summary, ", ".join(target.variants), how))
    table("Targets", ("target", "summary", "variants", "executed here by"), rows)
    click.echo("`edgepeft targets doctor TARGET` says what is missing where nothing executes a target.")


@targets.command(cls=Command)
@click.argument("target")
@json_option
@guarded
def show(target: str, as_json: bool) -> None:
    """Show a target's rules and budgets."""
    from ..targets import load_target

    found = load_target(target).model_dump(mode="json")
    if as_json:
        print_json(found)
        return
    click.echo(f"{found['name']}: {found['summary']}")
    table("", ("key", "value"), [row for row in _flat(found) if row[0] not in {"name", "summary"}])


@targets.command(cls=Command)
@click.argument("target")
@on_option
@json_option
@guarded
def doctor(target: str, on: str | None, as_json: bool) -> None:
    """Say whether this machine can execute a target.

    And what to run where something is missing. Exit code 0: it can; 1: it cannot.
    """
    from ..devices import executor_for
    from ..targets import load_target

    loaded = load_target(target)
    executor = executor_for(loaded, on)
    missing = () if executor is None else executor.missing()
    ready = executor is not None and not missing
    if as_json:
        print_json(
            {
                "target": loaded.name,
                "executor": None if executor is None else executor.name,
                "ready": ready,
                "emulated": executor is not None and executor.emulated,
                "missing": [{"what": each.what, "remedy": each.remedy} for each in missing],
            }
        )
    elif executor is None:
        click.echo(f"{loaded.name}: static only. No executor runs it; sizes, opset, operators and slots are checked.")
    else:
        for each in missing:
            click.echo(f"missing: {each.what}\n    {each.remedy}")
        kind = " (emulated: times are not judged)" if executor.emulated else ""
        click.echo(f"{loaded.name}: {'ready, ' if ready else 'not ready for '}{executor.name}{kind}")
    if loaded.note and not as_json:
        click.echo(f"note: {loaded.note}")
    sys.exit(0 if ready else 1)


@targets.command(cls=Command)
@bundle_argument
@option("--target", section="What", required=True, metavar="TARGET", help="A shipped target, or a target file.")
@path_option(
    "--out", section="What", required=True, help="The bundle folder to write; an old bundle there is replaced."
)
@json_option
@guarded
def pack(bundle: Path, target: str, out: Path, as_json: bool) -> None:
    """Write what a target gets of a bundle.

    Its preferred variant (made where a recipe can), its slot style, threads and file format, and nothing else; refused over
    the target's size budget. `edgepeft export --target` does it in one go.
    """
    from ..pipeline import fit
    from ..targets import load_target

    with steps() as announce:
        done = fit(bundle, load_target(target), out, announce=announce)
    if as_json:
        print_json({"bundle": str(done.bundle.path), "variant": done.variant, "mb": done.size_mb, "notes": done.notes})
        return
    for note in done.notes:
        click.echo(f"passed over {note}")
    click.echo(f"{done.bundle.path}: {done.variant} for {target}, {done.size_mb:.2f} MB")


@targets.command(cls=Command)
@bundle_argument
@data_option
@text_option
@label_option
@pair_option
@option("--rows", section="Data", type=click.IntRange(min=1), metavar="N", help="Rows of each adapter to run.")
@option("--static", section="What", is_flag=True, help="Execute nothing.")
@option("--no-reference", section="What", is_flag=True, help="Do not compare with PEFT (needs no torch).")
@report_option
@json_option
@guarded
def compare(
    bundle: Path,
    data: tuple[str, ...],
    text: str,
    label: str,
    pair: str | None,
    rows: int | None,
    static: bool,
    no_reference: bool,
    report: Path | None,
    as_json: bool,
) -> None:
    """Hold a bundle against every shipped target.

    Executed where something here can, by static checks elsewhere: variant, size, how, verdict. Exit code 0: no check fails;
    1: one does; 3: one cannot tell.
    """
    from ..devices import compare_targets

    with steps() as announce:
        done = compare_targets(
            bundle,
            data=_examples(data, text, label, pair),
            rows=rows,
            reference=not no_reference,
            execute=not static,
            progress=announce,
        )
    _finish(done, report, bundle, "compare", as_json)


@targets.command(cls=Command)
@bundle_argument
@option("--variant", section="What", metavar="NAME", show_default="fp32", help="The variant whose graph is looked at.")
@option(
    "--adapter", section="What", metavar="NAME", show_default="the first", help="The adapter of the constant slots."
)
@option("--shape", section="What", default="1x32", metavar="BATCHxTOKENS", help="The fixed shape.")
@report_option
@json_option
@guarded
def coverage(
    bundle: Path, variant: str | None, adapter: str | None, shape: str, report: Path | None, as_json: bool
) -> None:
    """Tell what mobile providers take of a graph.

    Nodes and share of FLOPs that NNAPI, CoreML, XNNPACK and QNN would take of the graph as it ships, with fixed shapes, and with
    constant slots; and why the rest runs on the CPU.
    """
    from ..devices import coverage_report

    _finish(coverage_report(bundle, variant=variant, adapter=adapter, shape=shape), report, bundle, "coverage", as_json)


@targets.command(cls=Command)
@bundle_argument
@option("--target", section="What", required=True, metavar="TARGET", help="A target with buckets, shipped or a file.")
@option(
    "--adapter", section="What", metavar="NAME", show_default="slots stay inputs", help="Make this adapter constant."
)
@path_option("--out", section="What", required=True, help="The folder for the graphs.")
@json_option
@guarded
def freeze(bundle: Path, target: str, adapter: str | None, out: Path, as_json: bool) -> None:
    """Write graphs with fixed shapes.

    One for each bucket of the target. With --adapter its slots are constants, for providers that want constant weights; without
    one, slots are inputs of a fixed rank that any adapter of the bundle can be padded to.
    """
    from ..pipeline import write_static
    from ..targets import load_target

    files = write_static(bundle, load_target(target), out, adapter=adapter)
    if as_json:
        print_json({"files": [str(file) for file in files]})
        return
    for file in files:
        click.echo(str(file))


@targets.command(cls=Command)
@click.argument("target")
@click.option("--again", is_flag=True, help="Fetch and build it again where it is complete.")
@guarded
def setup(target: str, again: bool) -> None:
    """Fetch what this machine needs to execute a target.

    Into edgepeft's cache: nothing is installed, and no root is needed. For linux-arm64-cpu on other than Arm hosts: an
    aarch64 Python from Debian 12's packages, pinned aarch64 wheels, and qemu where none is installed.
    """
    from ..devices import executor_for, setup_target
    from ..targets import load_target

    loaded = load_target(target)
    with steps() as announce:
        setup_target(loaded, announce, again=again)
    executor = executor_for(loaded)
    missing = () if executor is None else executor.missing()
    for each in missing:
        click.echo(f"still missing: {each.what}\n    {each.remedy}")
    click.echo(f"{loaded.name}: {'not ready' if missing else 'ready'}")
    sys.exit(1 if missing else 0)


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested keys as the target file's dotted ones, with values as that file writes them."""
    rows: list[tuple[str, str]] = []
    for key, inner in value.items():
        if isinstance(inner, dict):
            rows += _flat(inner, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, ", ".join(map(str, inner)) if isinstance(inner, list) else str(inner)))
    return rows
