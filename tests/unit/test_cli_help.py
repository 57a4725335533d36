"""Help screens: every command's renders within the width, texts are short, no option stands twice; docs/cli.md is current."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import click
import pytest
from cli_page import cli_page, commands
from click.testing import CliRunner
from cloup import Command, Group

from edgepeft.cli import main

#: Characters of one option's text; the longest explains three modes of export.
LONGEST_TEXT = 230

EVERY = [("edgepeft", main), *((context.command_path, command) for context, command in commands())]
each_command = pytest.mark.parametrize(("path", "command"), EVERY, ids=[path for path, _ in EVERY])


def help_of(path: str, columns: int) -> str:
    arguments = [*path.split()[1:], "--help"]
    done = CliRunner().invoke(main, arguments, prog_name="edgepeft", terminal_width=columns, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stderr == ""
    return done.stdout


def options_of(command: Command) -> list[click.Option]:
    """The options that the help shows: old spellings of renamed ones are hidden."""
    return [parameter for parameter in command.params if isinstance(parameter, click.Option) and not parameter.hidden]


def test_the_commands_of_the_readme_are_among_them() -> None:
    paths = {path for path, _ in EVERY}
    assert {
        "edgepeft export",
        "edgepeft run",
        "edgepeft targets list",
        "edgepeft targets freeze",
        "edgepeft web serve",
    } <= paths


@each_command
@pytest.mark.parametrize("columns", [80, 100])
def test_help_renders(path: str, command: Command, columns: int) -> None:
    """Usage, what the command does, each option once, and no line wider than the terminal."""
    text = help_of(path, columns)
    assert text.startswith(f"Usage: {path} ")
    assert max(len(line) for line in text.splitlines()) <= columns
    assert (command.help or "").split("\n\n")[0].strip() in text
    lists = re.split(r"^\S.*:$", text, flags=re.MULTILINE)[1:]  # what stands below the headings
    first = [line.split()[0].rstrip(",") for line in "".join(lists).splitlines() if line.startswith("  -")]
    assert sorted(first) == sorted([*(option.opts[0] for option in options_of(command)), "-h"])


@each_command
def test_no_option_twice(path: str, command: Command) -> None:
    """Neither a flag nor a parameter's name: click takes the last of two without a word."""
    flags = Counter(flag for option in options_of(command) for flag in (*option.opts, *option.secondary_opts))
    names = Counter(parameter.name for parameter in command.params)
    assert [each for each, count in (flags + names).items() if count > 1] == []
    titles = Counter(group.title for group in command.option_groups)
    assert [title for title, count in titles.items() if count > 1] == []


@each_command
def test_texts_are_short_sentences(path: str, command: Command) -> None:
    summary = command.get_short_help_str(limit=200)
    if command is not main:
        assert len(summary) <= 60
    assert summary.endswith(".")
    for option in options_of(command):
        assert option.help, f"{option.opts[0]} says nothing"
        assert option.help.endswith((".", "…"))
        assert len(option.help) <= LONGEST_TEXT
        assert "[default:" not in option.help, "show_default says it"


@pytest.mark.parametrize(
    "group", [command for _, command in EVERY if isinstance(command, Group)], ids=lambda group: group.name
)
def test_every_command_stands_under_a_heading(group: Group) -> None:
    """A command that no section names would be listed last, under another heading."""
    listed = [name for section in group.list_sections(click.Context(group)) for name, _ in section.list_commands()]
    assert sorted(listed) == sorted(group.commands)
    assert "Other commands" not in help_of("edgepeft" if group is main else f"edgepeft {group.name}", 80)


def test_an_unknown_command_names_the_nearest() -> None:
    done = CliRunner().invoke(main, ["exprot"])
    assert done.exit_code == 2
    assert "export" in done.stderr


def test_the_page_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "cli.md"
    assert page.read_text(encoding="utf-8") == cli_page(), "run: python docs/cli_page.py > docs/cli.md"
