"""Commands that measure and judge: validate, bench, check, targets."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..data import Examples
from .common import bundle_argument, guarded, json_option, named, print_json, progress, table

target_option = click.option(
    "--target", default="linux-x64-cpu", show_default=True, help="A shipped target or the path of a target file."
)
report_option = click.option(
    "--report",
    "report",
    type=click.Path(path_type=Path),
    help="Folder for the JSON, Markdown and JUnit report [default: BUNDLE/report].",
)
data_option = click.option(
    "--data", multiple=True, metavar="NAME=FILE", help="Labelled rows (.csv, .tsv, .jsonl) for an adapter. Repeat."
)
text_option = click.option("--text", default="text", show_default=True, help="The column that holds the text.")
label_option = click.option("--label", default="label", show_default=True, help="The column that holds the label.")
adapter_names = click.option("--adapter", "adapters", multiple=True, help="Only these adapters. Repeat.")
variant_names = click.option("--variant", "variants", multiple=True, help="Only these variants. Repeat.")


def _examples(data: tuple[str, ...], text: str, label: str) -> dict[str, Examples]:
    from ..data import read_examples

    return {name: read_examples(path, text=text, label=label) for name, path in named(data, "--data").items()}


@click.command()
@bundle_argument
@data_option
@text_option
@label_option
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME=PATH",
    help="Where an adapter's PEFT checkpoint is, if it moved. Repeat.",
)
@click.option("--model", help="The base model for the comparison [default: as the manifest says].")
@variant_names
@click.option("--no-reference", is_flag=True, help="Accuracy alone, without comparing with PEFT (needs no torch).")
@click.option(
    "--max-drop", default=0.01, show_default=True, help="Accuracy a variant may lose against PEFT, as a share."
)
@report_option
@json_option
@guarded
def validate(
    bundle: Path,
    data: tuple[str, ...],
    text: str,
    label: str,
    adapters: tuple[str, ...],
    model: str | None,
    variants: tuple[str, ...],
    no_reference: bool,
    max_drop: float,
    report: Path | None,
    as_json: bool,
) -> None:
    """Compare every adapter with PEFT, and measure accuracy on labelled rows.

    Exit code 0: all checks hold; 1: one does not; 2: the call was wrong.
    """
    from ..pipeline import validate as run
    from ..validate import validation_report

    with progress(as_json) as announce:
        result = run(
            bundle,
            data=_examples(data, text, label),
            adapters=named(adapters, "--adapter"),
            base=model,
            variants=variants or None,
            reference=not no_reference,
            max_drop=max_drop,
            progress=announce,
        )
    _finish(validation_report(result), report, bundle, "validate", as_json)


@click.command()
@bundle_argument
@target_option
@adapter_names
@variant_names
@click.option(
    "--shape", "shapes", multiple=True, metavar="BATCHxTOKENS", help="Input shapes [default: those with a budget]."
)
@click.option("--threads", type=int, help="Instead of the target's.")
@click.option("--processes", default=3, show_default=True, help="Fresh processes for each variant.")
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
    report: Path | None,
    as_json: bool,
) -> None:
    """Measure latency, load, swap, memory and size in fresh processes against a target's budgets.

    Exit code 0: within budget; 1: over; 3: the measurement cannot tell.
    """
    from ..bench import bench as run
    from ..bench import bench_report
    from ..targets import load_target

    loaded = load_target(target)
    with progress(as_json) as announce:
        result = run(
            bundle,
            loaded,
            adapters=list(adapters) or None,
            variants=list(variants) or None,
            shapes=list(shapes) or None,
            threads=threads,
            processes=processes,
            progress=lambda done, total, what: announce(f"{done}/{total} {what}"),
        )
    _finish(bench_report(result, loaded), report, bundle, "bench", as_json)


@click.command()
@bundle_argument
@click.option(
    "--baseline",
    required=True,
    type=click.Path(path_type=Path),
    help="A bundle, or the JSON that bench saved on this host.",
)
@target_option
@data_option
@text_option
@label_option
@adapter_names
@variant_names
@click.option(
    "--shape", "shapes", multiple=True, metavar="BATCHxTOKENS", help="Input shapes [default: those with a budget]."
)
@click.option("--threads", type=int, help="Instead of the target's.")
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
    adapters: tuple[str, ...],
    variants: tuple[str, ...],
    shapes: tuple[str, ...],
    threads: int | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """The CI gate: is this bundle slower, larger or less accurate than the baseline?

    Latency is compared in interleaved A B B A runs of fresh processes. Exit code 0: pass; 1: fail; 3: inconclusive.
    """
    from ..bench import check as run
    from ..bench import check_report

    with progress(as_json) as announce:
        result = run(
            bundle,
            baseline,
            target,
            adapters=list(adapters) or None,
            variants=list(variants) or None,
            shapes=list(shapes) or None,
            threads=threads,
            data=_examples(data, text, label) or None,
            progress=lambda done, total, what: announce(f"{done}/{total} {what}"),
        )
    _finish(check_report(result), report, bundle, "check", as_json)


def _finish(report, folder: Path | None, bundle: Path, stem: str, as_json: bool) -> None:  # type: ignore[no-untyped-def] # targets.Report, not imported at start
    from ..report import write_reports
    from ..report.render import to_json

    files = write_reports(folder or bundle / "report", stem, report)
    if as_json:
        click.echo(to_json(report))
    else:
        for drawn in report.tables:
            table(drawn.title, drawn.columns, drawn.rows)
        table(
            "Gates",
            ("gate", "verdict", "value", "limit", "unit"),
            [(g.name, str(g.verdict), g.value, g.limit, g.unit) for g in report.gates],
        )
        for note in report.notes:
            click.echo(note)
        click.echo(f"verdict: {report.verdict}   reports: {files.json}, {files.markdown.name}, {files.junit.name}")
    sys.exit(report.verdict.exit_code)


@click.group()
def targets() -> None:
    """List the kinds of device that ship with edgepeft, or show one."""


@targets.command("list")
@json_option
@guarded
def list_(as_json: bool) -> None:
    """List the shipped targets."""
    from ..targets import list_targets

    found = list_targets()
    if as_json:
        print_json([t.model_dump(mode="json") for t in found])
        return
    table(
        "Targets",
        ("target", "summary", "variants", "runs here"),
        [(t.name, t.summary, ", ".join(t.variants), t.here() or "yes") for t in found],
    )


@targets.command()
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
    rows: list[tuple[str, object]] = []
    for key, value in found.items():
        if isinstance(value, dict):
            rows.extend(
                (f"{key}.{inner}", v if not isinstance(v, dict) else ", ".join(f"{a}: {b}" for a, b in v.items()))
                for inner, v in value.items()
            )
        elif key not in {"name", "summary"}:
            rows.append((key, ", ".join(map(str, value)) if isinstance(value, list) else value))
    table("", ("key", "value"), rows)
