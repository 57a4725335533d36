"""Options: their headings in ``--help``, and those that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Option(click.Option):
    """An option that ``--help`` lists under a heading of its own."""

    def __init__(self, *args: Any, section: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class Command(click.Command):
    """A command whose ``--help`` groups options by their section; those without one come last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each section, in the order in which the options name them."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        last = sections.pop("Options", [])
        for title, records in (*sections.items(), ("Options", last)):
            with formatter.section(title):
                formatter.write_dl(records)


class Group(click.Group):
    """Commands in the order in which a user meets them."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As they were added."""
        return list(self.commands)


def option(*names: str, section: str = "Options", **kwargs: Any) -> Callable[[F], F]:
    """``click.option`` with a section, and with the default shown where there is one."""
    kwargs.setdefault("show_default", kwargs.get("default") is not None and not kwargs.get("is_flag"))
    return click.option(*names, cls=Option, section=section, **kwargs)


def path_option(*names: str, **kwargs: Any) -> Callable[[F], F]:
    """An option that takes a path."""
    return option(*names, type=click.Path(path_type=Path), **kwargs)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
force_option = click.option(
    "--force", is_flag=True, help="Accept a foreign adapter whose base_model_name_or_path names another base."
)
bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))
threads_option = option("--threads", type=click.IntRange(min=1), metavar="N", help="ONNX Runtime's intra-op threads.")
text_option = option("--text", section="Data", default="text", metavar="COLUMN", help="Column of the text.")
label_option = option("--label", section="Data", default="label", metavar="COLUMN", help="Column of the label.")
pair_option = option("--pair", section="Data", metavar="COLUMN", help="Column of a second text, for pairs.")
calibration_option = option(
    "--data",
    section="Data",
    multiple=True,
    metavar="NAME=FILE",
    help="Texts (.csv, .tsv, .jsonl) of an adapter, '*=FILE' for all: what w8a16 measures activations with. May be repeated.",
)
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
bench_threads_option = option(
    "--threads",
    section="What",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="the target's",
    help="ONNX Runtime's intra-op threads.",
)
