"""``--dry-run``: a change that is made and checked in full, and then not kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class _NotKeptError(Exception):
    """Ends the block that would put a change in its place."""


@contextmanager
def kept_unless(dry_run: bool) -> Iterator[None]:
    """Around the block that changes a bundle; at its end stands :func:`drop_if`, whose exception undoes the change."""
    try:
        yield
    except _NotKeptError:
        if not dry_run:
            raise


def drop_if(dry_run: bool) -> None:
    """Leave the block, so that what was staged in it is thrown away."""
    if dry_run:
        raise _NotKeptError
