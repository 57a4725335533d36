"""Options that were renamed: the old spelling works, is not in the help, and says what it is called today."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from cloup import option


def renamed_option(old: str, new: str, dest: str) -> Callable[[Any], Any]:
    """A hidden option ``old`` whose value goes to ``dest``; None where it is not given.

    Args:
        old: The spelling of earlier versions, such as ``--column``.
        new: The spelling of today, which the notice names.
        dest: The parameter of the command that takes the value.
    """

    def notice(context: click.Context, _: click.Parameter, value: str | None) -> str | None:
        if value is not None and not context.resilient_parsing:
            from .show import warn

            warn(f"{old} is called {new} now; the old name still works")
        return value

    return option(old, dest, hidden=True, callback=notice)
