"""``edgepeft train`` in several processes: the first one speaks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import click

from ..errors import EdgepeftError


@contextmanager
def first_speaks() -> Iterator[None]:
    """Within: of the processes that a launcher started all but the first are silent.

    What is wrong with the call or the data all of them find, and the first one says it. An error that comes once they have come
    together may be of one process alone, so each says its own, with its number.
    """
    from ..train.processes import group, is_first, launched

    if is_first():
        yield
        return
    place, count = launched()
    with Path(os.devnull).open("w") as nowhere:
        try:
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                yield
        except EdgepeftError as error:
            if group().several:
                click.secho(f"Error in process {place + 1} of {count}: {error}", err=True, fg="red")
            raise SystemExit(2) from error
