"""``edgepeft targets coverage``: what mobile providers take of a graph."""

from __future__ import annotations

from pathlib import Path

import click

from ..guarded import guarded
from ..options import Command, bundle_argument, json_option, option, report_option
from ..show import finish


@click.command(cls=Command)
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
    from ...devices import coverage_report

    finish(coverage_report(bundle, variant=variant, adapter=adapter, shape=shape), report, bundle, "coverage", as_json)
