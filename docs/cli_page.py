"""``docs/cli.md``, written from the commands themselves.

``python docs/cli_page.py > docs/cli.md``
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Sequence

import click
from cloup import Command, Group

from edgepeft.cli import main

_INTRODUCTION = """\
# The command line

Written by `python docs/cli_page.py > docs/cli.md` from the commands; a test checks that it is current.

Results go to standard output, as JSON with `--json`; progress and warnings go to standard error. Exit codes: 0 good, 1 a gate
failed, 2 the call was wrong, 3 a measurement was inconclusive, 70 a bug in edgepeft, 130 Ctrl-C, 143 SIGTERM. With `--json` a
wrong call also prints `{"error": …, "type": …}`. A model, an adapter or a data set may be a folder or a Hugging Face id;
`HF_HUB_OFFLINE=1` keeps it off the network.
"""


def commands(group: Group = main, parent: click.Context | None = None) -> Iterator[tuple[click.Context, Command]]:
    """Every command below ``group`` with its context, in the order of ``--help``; a group stands before its commands."""
    context = group.make_context(group.name if parent else "edgepeft", [], parent, resilient_parsing=True)
    for section in group.list_sections(context):
        for name, command in section.list_commands():
            assert isinstance(command, Command)
            yield command.make_context(name, [], context, resilient_parsing=True), command
            if isinstance(command, Group):
                yield from commands(command, context)


def cli_page() -> str:
    """``docs/cli.md``."""
    parts = [_INTRODUCTION]
    pairs = list(commands())
    parts.append(_table(("command", "what it does"), [(_link(c.command_path), _short(k)) for c, k in pairs]))
    for context, command in pairs:
        parts.append(f"## {context.command_path}\n")
        if isinstance(command, Group):
            parts.append(f"{_text(command)}\n")
            continue
        usage = " ".join(command.collect_usage_pieces(context))
        parts.append(f"```\n{context.command_path} {usage}\n```\n")
        parts.append(f"{_text(command)}\n")
        groups = [(group.title, list(group)) for group in command.option_groups]
        other = [option for option in command.ungrouped_options if not option.hidden]
        rows = [_row(context, option, title) for title, options in [*groups, ("", other)] for option in options]
        if rows:
            parts.append(_table(("group", "option", "what it does", "default"), rows))
    return "\n".join(parts)


def _link(path: str) -> str:
    return f"[`{path}`](#{path.replace(' ', '-')})"


def _short(command: click.Command) -> str:
    return command.get_short_help_str(limit=200)


def _text(command: click.Command) -> str:
    """The help text, its paragraphs on one line each."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in paragraphs)


def _row(context: click.Context, option: click.Option, group: str) -> tuple[str, str, str, str]:
    record = option.get_help_record(context)
    assert record is not None  # hidden options were left out
    extra = option.get_help_extra(context)
    default = extra.get("default", "")
    if "required" in extra:
        default = "required"
    what = option.help or ""
    if "range" in extra:
        what = f"{what} ({extra['range']})"
    return group, f"`{record[0]}`", what, default.strip("()") if default.startswith("(") else default


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = [[re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(cli_page())
