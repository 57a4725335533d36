"""A batch in which each row has its own adapter, in one run over the same graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..bundle import AdapterEntry, Bundle
from ..errors import InputError
from .active import read_tensors


def _check(bundle: Bundle, rows: Sequence[str | None]) -> dict[str, AdapterEntry]:
    entries = {name: bundle.adapter(name) for name in dict.fromkeys(rows) if name is not None}
    before = [name for name, entry in entries.items() if entry.prefix_length]
    if before:
        raise InputError(
            f"adapter {before[0]!r} ({entries[before[0]].method}) puts states before the sequence, so its rows are longer than "
            "those of others; run them by themselves with use()"
        )
    fixed = [name for name, entry in entries.items() if not entry.per_row]
    if fixed:
        raise InputError(
            f"adapter {fixed[0]!r} ({entries[fixed[0]].method}) edits what cannot differ by row (a convolution, an "
            "embedding, a norm, a bias inside a fused operator, or experts of a traced graph, to which tokens of all rows go "
            "together); run its rows by themselves with use()"
        )
    widths = {len(entry.labels) for entry in entries.values() if entry.labels is not None}
    if len(widths) > 1:
        counts = {name: len(entry.labels or ()) for name, entry in entries.items()}
        raise InputError(f"adapters with different label counts cannot share a batch: {counts}")
    return entries


def mixed_tensors(bundle: Bundle, rows: Sequence[str | None]) -> dict[str, np.ndarray]:
    """Slot tensors for a batch whose row ``i`` uses adapter ``rows[i]`` (``None``: the base).

    Each has ``adapter_batch = len(rows)``. Ranks are padded with zeros to the widest in the batch, gains with ones, so
    every row computes what it would alone. Raises :class:`UnknownAdapterError`, and :class:`InputError` for adapters that
    cannot be mixed: parameters that are one for the whole batch, or heads of different label counts.
    """
    entries = _check(bundle, rows)
    loaded = {name: read_tensors(bundle, name, entry) for name, entry in entries.items()}
    slots = bundle.manifest.slots
    mixed: dict[str, np.ndarray] = {}
    names = dict.fromkeys(tensor for tensors in loaded.values() for tensor in tensors)
    gains = {gain for slot in slots.linear for gain in (slot.out_gain, slot.in_gain) if gain is not None}
    replaced = {slot.tensor: slot.parameter for slot in slots.overrides}
    for tensor in names:
        mine = [loaded[row].get(tensor) if row is not None else None for row in rows]
        present = [array for array in mine if array is not None]
        if tensor in replaced and len(present) < len(rows) and replaced[tensor] not in bundle.manifest.base.fresh:
            raise InputError(
                f"some rows replace {replaced[tensor]} and others keep the base's; run them in batches of their own"
            )
        shape = tuple(max(array.shape[axis] for array in present) for axis in (1, 2))
        fill = np.ones if tensor in gains else np.zeros
        whole = fill((len(rows), *shape), np.float32)
        for row, array in enumerate(mine):
            if array is not None:
                whole[row, : array.shape[1], : array.shape[2]] = array[0]
        mixed[tensor] = whole
    return mixed
