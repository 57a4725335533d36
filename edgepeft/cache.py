"""Where what was fetched once is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder: ``$EDGEPEFT_CACHE``, or ``~/.cache/edgepeft``. It need not exist."""
    configured = os.environ.get("EDGEPEFT_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "edgepeft"
