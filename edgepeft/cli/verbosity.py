"""How much is said, and where: ``-v``, ``-q`` and ``--log-file``, over the standard logging module.

What commands announce goes through the logger ``edgepeft.steps``, warnings and errors through ``edgepeft``; both are shown
as they always were, and a log file gets them with the time. Other libraries' loggers join with ``-v`` or a log file.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from cloup import Option, option

from .options import PATH

LOGGER = logging.getLogger("edgepeft")
STEPS = logging.getLogger("edgepeft.steps")
LOGGER.addHandler(logging.NullHandler())

_KEY = "edgepeft.verbosity"


def quiet() -> bool:
    """Whether progress is left out (``-q``)."""
    context = click.get_current_context(silent=True)
    return bool(context is not None and context.find_root().meta.get(f"{_KEY}.quiet"))


def _set_quiet(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().meta[f"{_KEY}.quiet"] = True


def _set_verbose(context: click.Context, _: click.Parameter, value: int) -> None:
    if not value:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    # What edgepeft's commands say is shown already.
    handler.addFilter(_not_shown)
    _attach(context, handler, logging.DEBUG if value > 1 else logging.INFO)


def _not_shown(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] != "edgepeft" or record.levelno <= logging.DEBUG


def _set_file(context: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is None:
        return
    try:
        handler = logging.FileHandler(value, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise click.BadParameter(f"{value} cannot be written: {error.strerror}", context) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    _attach(context, handler, logging.DEBUG)


def _attach(context: click.Context, handler: logging.Handler, level: int) -> None:
    """Send records to ``handler`` until the command ends; the loggers are then as they were."""
    handler.setLevel(level)
    root = logging.getLogger()
    before = root.level, LOGGER.level
    # Not below INFO for others: torch's exporter alone writes 100,000 debug records.
    root.setLevel(min(root.level or logging.WARNING, logging.INFO))
    LOGGER.setLevel(logging.DEBUG)
    root.addHandler(handler)

    def detach() -> None:
        root.removeHandler(handler)
        handler.close()
        root.setLevel(before[0])
        LOGGER.setLevel(before[1])

    context.find_root().call_on_close(detach)


#: Names and settings of the options.
_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (
        ("-v", "--verbose"),
        {
            "count": True,
            "show_default": False,
            "callback": _set_verbose,
            "help": "Show what libraries log; -vv: details of edgepeft too.",
        },
    ),
    (
        ("-q", "--quiet"),
        {"is_flag": True, "callback": _set_quiet, "help": "Leave out progress; warnings and errors stay."},
    ),
    (
        ("--log-file",),
        {"type": PATH, "metavar": "PATH", "callback": _set_file, "help": "Append all that is logged, with times."},
    ),
)


def verbosity_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of the whole command line, before a command's name."""
    for names, settings in reversed(_OPTIONS):
        function = option(*names, expose_value=False, **settings)(function)
    return function


def accept_behind(group: click.Group) -> None:
    """Take the options behind the name of every command below ``group`` too; its help does not repeat them."""
    for command in group.commands.values():
        if isinstance(command, click.Group):
            accept_behind(command)
        else:
            command.params.extend(
                Option(list(names), expose_value=False, hidden=True, **settings) for names, settings in _OPTIONS
            )
