"""Putting a finished folder in its place in one step."""

from __future__ import annotations

import tempfile
from pathlib import Path


def replace_folder(source: Path, destination: Path) -> None:
    """Rename the folder ``source`` to ``destination``; an existing ``destination`` is replaced.

    Both must be on one file system. A process killed in between leaves either the old or the new folder under
    ``destination`` or, for the instant between two renames, the old one whole in a hidden sibling.
    """
    if not destination.exists():
        source.replace(destination)
        return
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}.old-", dir=destination.parent) as aside:
        old = Path(aside) / destination.name
        destination.replace(old)
        try:
            source.replace(destination)
        except OSError:
            old.replace(destination)
            raise
