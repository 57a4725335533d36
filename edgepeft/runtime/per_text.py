"""What is made once for each different text of a bundle: adapters that bring none share the base's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from ..bundle import NO_TEXT, OwnText

T = TypeVar("T")


class PerText(Generic[T]):
    """Makes a thing of an adapter's text files at its first use, once for all adapters whose files are the same.

    Args:
        make: Makes the thing from an adapter's own text files.
    """

    def __init__(self, make: Callable[[OwnText], T]) -> None:
        self._make = make
        self._made: dict[OwnText, T] = {}
        self._lock = threading.Lock()

    def get(self, own: OwnText = NO_TEXT) -> T:
        """The thing for an adapter's text; for the base's by default."""
        found = self._made.get(own)
        if found is None:
            with self._lock:
                found = self._made.get(own)
                if found is None:
                    found = self._made[own] = self._make(own)
        return found

    def forget(self) -> None:
        """Let go of what was made."""
        with self._lock:
            self._made.clear()
