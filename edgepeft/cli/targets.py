"""The ``targets`` commands: kinds of device, what runs them, and bundles for them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .common import (
    Command,
    Group,
    bundle_argument,
    calibration_option,
    calibration_texts,
    guarded,
    json_option,
    label_option,
    lock_option,
    option,
    pair_option,
    path_option,
    print_json,
    text_option,
)
from .measure import data_option, device_data, finish, on_option, report_option
from .show import steps, table


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
@calibration_option
@text_option
@pair_option
@lock_option
@json_option
@guarded
def pack(
    bundle: Path,
    target: str,
    out: Path,
    data: tuple[str, ...],
    text: str,
    pair: str | None,
    lock_timeout: float,
    as_json: bool,
) -> None:
    """Write what a target gets of a bundle.

    Its preferred variant (made where a recipe can), its slot style, threads and file format, and nothing else; refused over
    the target's size budget. `edgepeft export --target` does it in one go.
    """
    from ..pipeline import fit
    from ..targets import load_target

    with steps() as announce:
        texts = calibration_texts(data, text, pair)
        done = fit(bundle, load_target(target), out, data=texts, lock_timeout=lock_timeout, announce=announce)
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
            data=device_data(bundle, data, text, label, pair),
            rows=rows,
            reference=not no_reference,
            execute=not static,
            progress=announce,
        )
    finish(done, report, bundle, "compare", as_json)


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

    finish(coverage_report(bundle, variant=variant, adapter=adapter, shape=shape), report, bundle, "coverage", as_json)


@targets.command(cls=Command)
@bundle_argument
@option("--target", section="What", required=True, metavar="TARGET", help="A target with buckets, shipped or a file.")
@option(
    "--adapter", section="What", metavar="NAME", show_default="slots stay inputs", help="Make this adapter constant."
)
@option(
    "--variant",
    section="What",
    metavar="NAME",
    show_default="the target's first that there is",
    help="Of this variant.",
)
@path_option("--out", section="What", required=True, help="The folder for the graphs.")
@json_option
@guarded
def freeze(bundle: Path, target: str, adapter: str | None, variant: str | None, out: Path, as_json: bool) -> None:
    """Write graphs with fixed shapes.

    One for each bucket of the target. With --adapter its slots are constants, for providers that want constant weights; without
    one, slots are inputs of a fixed rank that any adapter of the bundle can be padded to.
    """
    from ..pipeline import write_static
    from ..targets import load_target

    files = write_static(bundle, load_target(target), out, adapter=adapter, variant=variant)
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
