"""Addresses as they may be shown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def without_secrets(address: str) -> str:
    """An address without what may be secret in it: a user's name and password, and what stands behind the path.

    Raises:
        ValueError: It is no address.

    Example:
        >>> without_secrets("postgresql://me:secret@db:5432/studies?sslpassword=other")
        'postgresql://db:5432/studies'
    """
    parts = urlsplit(address)
    port = re.search(r":\d+$", parts.netloc)
    return f"{parts.scheme}://{parts.hostname or ''}{port[0] if port else ''}{parts.path}"
