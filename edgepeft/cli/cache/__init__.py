"""``edgepeft cache``: what was fetched or built once."""

from __future__ import annotations

from cloup import Section, group

from .list import list_
from .prune import prune


@group(sections=[Section("Commands", [list_, prune])])
def cache() -> None:
    """Look at what was fetched or built once, and remove it."""
