"""The command line: parse, call one function, print."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from click import version_option
from cloup import Context, Group, Section, group

from .. import __version__
from .add import add
from .bench import bench
from .blend import blend
from .build import build
from .cache import cache
from .check import check
from .demo import demo
from .diff import diff
from .doctor import doctor
from .export import export
from .inspect import inspect
from .pull import pull
from .push import push
from .quantize import quantize
from .relabel import relabel
from .remove import remove
from .rename import rename
from .report import report
from .run import run
from .search import search
from .show import print_json
from .targets import targets
from .train import train
from .tune import tune
from .validate import validate
from .verbosity import accept_behind, verbosity_options
from .warm import warm
from .web import web


class _Main(Group):
    """Says what is wrong with a call as JSON too, where it asks for JSON."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> click.Context:
        wants = "--json" in args
        with _told(wants):
            context = super().make_context(info_name, args, parent, **extra)
        context.meta[_JSON] = wants
        return context

    def invoke(self, ctx: click.Context) -> Any:
        with _told(ctx.meta.get(_JSON, False)):
            return super().invoke(ctx)


_JSON = "edgepeft.json"


@contextmanager
def _told(as_json: bool) -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        if as_json:
            print_json({"error": error.format_message(), "type": "UsageError"})
        raise


@group(
    cls=_Main,
    sections=[
        Section("Start here", [demo, doctor]),
        Section("Make and change", [build, train, tune, search, export, add, relabel, rename, remove, blend, quantize]),
        Section("Use", [run, warm, inspect, diff, web, push, pull, cache]),
        Section("Measure and judge", [validate, bench, check, report, targets]),
    ],
    context_settings=Context.settings(
        help_option_names=["-h", "--help"], max_content_width=110, show_default=True, align_option_groups=False
    ),
)
@version_option(__version__, prog_name="edgepeft")
@verbosity_options
def main() -> None:
    """Deploy PEFT-adapted transformer models on edge devices through ONNX Runtime.

    Every command prints its result on standard output (as JSON with --json), progress and warnings on standard error.

    Exit codes: 0 good, 1 a gate failed, 2 the call was wrong, 3 a measurement was inconclusive.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe that cannot show "≤" gets "?" and not a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


accept_behind(main)
