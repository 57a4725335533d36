"""Where what was fetched once is kept."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import InputError


def cache_dir() -> Path:
    """The cache folder: ``$EDGEPEFT_CACHE``, or ``~/.cache/edgepeft``. It need not exist.

    Raises :class:`InputError` where the user has no home folder.
    """
    configured = os.environ.get("EDGEPEFT_CACHE")
    try:
        return Path(configured).expanduser() if configured else Path.home() / ".cache" / "edgepeft"
    except RuntimeError as error:
        raise InputError(
            "there is no home folder to keep the cache in (HOME is not set, and the user is not known): set EDGEPEFT_CACHE to "
            "the path of a folder"
        ) from error
