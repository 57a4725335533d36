"""``edgepeft build``: a recipe, step by step."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import cloup
from cloup import option

from .guarded import guarded
from .options import PATH, json_option
from .show import print_json, steps


@dataclass(frozen=True)
class _Options:
    names: frozenset[str]
    flags: frozenset[str]
    repeatable: frozenset[str]


@cloup.command()
@click.argument("recipe", type=PATH)
@option("--again", is_flag=True, help="Run every step, whether something changed or not.")
@option("--dry-run", is_flag=True, help="Only say which steps would run.")
@json_option
@click.pass_context
@guarded
def build(context: click.Context, recipe: Path, again: bool, dry_run: bool, as_json: bool) -> None:
    """Make a bundle as a recipe file says.

    The steps train, export, quantize, validate, bench, check, report and pack take their options from the file's tables. A
    step runs again only where its options, the contents of its files or a step before it changed. A build that was interrupted
    goes on where it was. Exit code: that of the step that did not end well.
    """
    from ..recipe import build as run
    from ..recipe import read_recipe

    group = context.find_root().command
    assert isinstance(group, click.Group)
    words = [*((name,) for name in group.commands), ("targets", "pack")]
    read = read_recipe(recipe, {tuple(each): _options(group, each) for each in words})
    with steps() as announce:
        results = run(read, again=again, dry_run=dry_run, as_json=as_json, announce=announce)
    if as_json:
        print_json([asdict(each) for each in results])
    else:
        for each in results:
            took = f", {each.seconds:.1f} s" if each.seconds else ""
            code = f", exit code {each.exit_code}" if each.exit_code else ""
            click.echo(f"{each.name}: {each.status}{took}{code}")
    sys.exit(results[-1].exit_code if results else 0)


def _options(group: click.Group, words: tuple[str, ...]) -> _Options:
    command: click.Command = group
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    named = [(each.opts[-1].removeprefix("--"), each) for each in options if each.opts[-1].startswith("--")]
    return _Options(
        names=frozenset(name for name, _ in named),
        flags=frozenset(name for name, each in named if each.is_flag),
        repeatable=frozenset(name for name, each in named if each.multiple),
    )
