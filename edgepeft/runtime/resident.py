"""The adapters that an engine holds in memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..bundle import Bundle
from .active import ActiveAdapter, load_adapter, read_tensors
from .buffers import as_values, packed


class ResidentAdapters:
    """Loads each adapter of a bundle once, however many threads ask for it, and holds it.

    An adapter is held in up to two forms: mapped from its file, for runs that name it in ``RunOptions``, and as tensors, for
    runs that take them as inputs (generation, scales, blends, mixed batches). Each is read at its first use.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._mapped: dict[str, ActiveAdapter] = {}
        self._tensors: dict[str, Mapping[str, np.ndarray]] = {}
        self._values: dict[str, Mapping[str, Any]] = {}
        # Held while a file is read, never while a graph runs. Reading an entry of a dict needs no lock.
        self._lock = threading.Lock()

    def get(self, name: str) -> ActiveAdapter:
        """An adapter, ready to run; :class:`UnknownAdapterError` names those there are."""
        found = self._mapped.get(name)
        if found is None:
            with self._lock:
                found = self._mapped.get(name)
                if found is None:
                    found = self._mapped[name] = load_adapter(self._bundle, name)
        return found

    def tensors(self, name: str) -> Mapping[str, np.ndarray]:
        """Its slot tensors by name, laid out in the order in which the graph reads them. They are shared: do not change them."""
        found = self._tensors.get(name)
        if found is None:
            with self._lock:
                found = self._tensors.get(name)
                if found is None:
                    tensors = read_tensors(self._bundle, name, self._bundle.adapter(name))
                    found = packed(tensors, self._bundle.manifest.slots.tensors())
                    self._tensors[name] = found
        return found

    def values(self, name: str) -> Mapping[str, Any]:
        """:meth:`tensors` as OrtValues over the same memory, for runs that take them as inputs."""
        found = self._values.get(name)
        if found is None:
            found = self._values.setdefault(name, as_values(self.tensors(name)))
        return found

    def forget(self) -> None:
        """Let go of all of them. What runs with an adapter holds it until it ends; the next use reads the file again."""
        with self._lock:
            self._mapped.clear()
            self._tensors.clear()
            self._values.clear()
