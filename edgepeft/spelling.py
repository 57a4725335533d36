"""What somebody may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'reviews'?"`` where one of ``known`` is close to ``word``, upper and lower case alike; else nothing.

    Example:
        >>> did_you_mean("reveiws", ["reviews", "topics"])
        "; did you mean 'reviews'?"
    """
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), names, n=1)
    return f"; did you mean {names[close[0]]!r}?" if close else ""
