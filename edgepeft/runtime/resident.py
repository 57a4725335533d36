"""The adapters that an engine holds in memory: opened at their first use, and no more of them than it was told."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..errors import InputError
from .active import ActiveAdapter, load_adapter, read_tensors
from .buffers import as_values, packed
from .once import Once

#: From an adapter's slot tensors to what runs are fed, as OrtValues, and to the piece of memory that batches join.
Form = Callable[[Mapping[str, np.ndarray]], tuple[Mapping[str, Any], np.ndarray | None]]

#: Adapters that stay in memory where ``runtime.open`` is not told how many.
RESIDENT = 8


class Resident:
    """One adapter in the forms that runs take. Each is read, and verified, at its first use.

    ``mapped`` is for runs that name the adapter in ``RunOptions``. ``tensors`` are its slot tensors by name, laid out in the order
    in which the graph reads them, for scales, blends and mixed batches. ``form``: what runs are fed in place of them.
    """

    def __init__(self, bundle: Bundle, name: str, form: Form | None = None) -> None:
        # No reference to itself: an adapter that is let go is freed at once, not when cycles are collected.
        tensors: Once[Mapping[str, np.ndarray]] = Once(lambda: _read(bundle, name))
        self.tensors = tensors
        self.mapped = Once(lambda: _load(bundle, name, tensors, form))


def _read(bundle: Bundle, name: str) -> Mapping[str, np.ndarray]:
    return packed(read_tensors(bundle, name, bundle.adapter(name)), bundle.manifest.slots.tensors())


def _load(bundle: Bundle, name: str, tensors: Once[Mapping[str, np.ndarray]], form: Form | None) -> ActiveAdapter:
    entry = bundle.adapter(name)
    if form is not None and not entry.prefix_length:
        # Read, and not kept: what is made of them takes their place in memory.
        read = read_tensors(bundle, name, entry)
        active, (values, piece) = load_adapter(bundle, name, lambda: read), form(read)
        return replace(active, feeds={}, values=values, piece=piece, formed=True)
    active = load_adapter(bundle, name) if entry.form == "fp32" else load_adapter(bundle, name, tensors.get)
    if active.handle is None or not bundle.manifest.writes:
        return active
    # A generator binds tensors. The view that holds them needs its file no more, whatever becomes of it.
    return replace(active, values=as_values(tensors.get()))


class ResidentAdapters:
    """Opens each adapter of a bundle at its first use, once however many threads ask, and holds the ``limit`` last used ones.

    One that is let go, because others were used since or by :meth:`unload`, stays in memory as long as a view or a run holds it;
    the next use reads its file again.
    """

    def __init__(
        self,
        bundle: Bundle,
        limit: int = RESIDENT,
        held: Mapping[str, Resident] | None = None,
        form: Form | None = None,
    ) -> None:
        if type(limit) is not int or limit < 1:
            raise InputError(f"resident must be a whole number of adapters, at least 1, found {limit!r:.80}")
        self.bundle = bundle
        self.limit = limit
        self._form = form
        #: By name, the one used longest ago first.
        self._held: OrderedDict[str, Resident] = OrderedDict(held or {})
        # Held while entries come and go, never while a file is read or a graph runs.
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Those in memory, the one used longest ago first."""
        with self._lock:
            return tuple(self._held)

    def _get(self, name: str) -> Resident:
        with self._lock:
            found = self._held.get(name)
            if found is None:
                self.bundle.adapter(name)  # raises for a name that there is not
                found = self._held[name] = Resident(self.bundle, name, self._form)
            self._held.move_to_end(name)
            while len(self._held) > self.limit:
                self._held.popitem(last=False)
            return found

    def get(self, name: str) -> ActiveAdapter:
        """An adapter, ready to run; :class:`UnknownAdapterError` names those there are."""
        return self._get(name).mapped.get()

    def tensors(self, name: str) -> Mapping[str, np.ndarray]:
        """Its slot tensors by name, laid out in the order in which the graph reads them. They are shared: do not change them."""
        return self._get(name).tensors.get()

    def values(self, name: str) -> Mapping[str, Any]:
        """:meth:`tensors` as OrtValues over the same memory, for runs that take them as inputs."""
        return as_values(self.tensors(name))

    def unload(self, name: str) -> None:
        """Let go of one; :class:`UnknownAdapterError` names those that the bundle has."""
        self.bundle.adapter(name)
        with self._lock:
            self._held.pop(name, None)

    def forget(self) -> None:
        """Let go of all of them."""
        with self._lock:
            self._held.clear()

    def moved(self, bundle: Bundle, unchanged: Collection[str]) -> ResidentAdapters:
        """The adapters of ``bundle``, a later state of the same folder; those that are ``unchanged`` stay in memory."""
        with self._lock:
            held = {name: each for name, each in self._held.items() if name in unchanged}
        return ResidentAdapters(bundle, self.limit, held, self._form)
