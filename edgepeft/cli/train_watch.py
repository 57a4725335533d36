"""``edgepeft train --watch``: train again from the last adapter whenever the data change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import EdgepeftError, InputError
from .show import warn

#: What the adapter that is started from decides, so that only the first training is told.
_DECIDED = ("method", "peft", "ship", "rank", "alpha", "dropout", "target_modules", "use_dora", "use_rslora", "resume")


def watched(train: Callable[..., None], out: Path, data: Sequence[str | None], options: Mapping[str, Any]) -> None:
    """Train, and again from ``out`` after each change of ``data``; what is wrong with changed data is said and waited out.

    Args:
        train: Trains and prints; takes the options.
        out: The adapter.
        data: What rows are read from; ids of data sets among them cannot change.
        options: Of the first training.

    Raises:
        InputError: None of ``data`` is a file or folder.
    """
    from ..train.watch import Changes

    files = [Path(each) for each in data if each is not None and Path(each).exists()]
    if not files:
        raise InputError("--watch looks at files, and --data is none; give a file or folder")
    looks = Changes(files)  # changes while the first training runs count too
    _unless_worse(train, options)
    later = {name: value for name, value in options.items() if name not in _DECIDED}
    while True:
        click.echo(f"watching {', '.join(map(str, files))}; Ctrl-C ends", err=True)
        changed = looks.wait()
        click.echo(f"{', '.join(map(str, changed))} changed: training on from {out}", err=True)
        try:
            _unless_worse(train, {**later, "start": out})
        except EdgepeftError as error:
            warn(f"{error}. The adapter in {out} is as it was")


def _unless_worse(train: Callable[..., None], options: Mapping[str, Any]) -> None:
    """Train; where it made things worse that was said, and the next change may mend it."""
    with contextlib.suppress(SystemExit):
        train(**options)
