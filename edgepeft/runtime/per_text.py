"""What is made once for each different text of a bundle: adapters that bring none share the base's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from ..bundle import Bundle
from .files import OwnText

T = TypeVar("T")


class PerText(Generic[T]):
    """Makes a thing of an adapter's text files at its first use, once for all adapters whose files are the same.

    Args:
        bundle: The bundle.
        make: Makes the thing from the adapter's own text files, by name.
    """

    def __init__(self, bundle: Bundle, make: Callable[[OwnText], T]) -> None:
        self._bundle = bundle
        self._make = make
        self._made: dict[tuple[tuple[str, str], ...], T] = {}
        self._lock = threading.Lock()

    def get(self, adapter: str | None) -> T:
        """The thing for an adapter; ``None`` is the base."""
        own = self._bundle.text_of(adapter)
        files = self._bundle.manifest.files
        key = tuple(sorted((name, files[path].sha256) for name, path in own.items()))
        found = self._made.get(key)
        if found is None:
            with self._lock:
                found = self._made.get(key)
                if found is None:
                    found = self._made[key] = self._make(own)
        return found

    def forget(self) -> None:
        """Let go of what was made."""
        with self._lock:
            self._made.clear()
