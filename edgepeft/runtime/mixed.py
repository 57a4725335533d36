"""A batch in which each row has its own adapter, in one run over the same graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..bundle import AdapterEntry, Bundle, Head, head_of
from ..bundle.heads import is_label_axis, numbered
from ..errors import InputError
from .active import ActiveAdapter
from .buffers import as_values

Tensors = Mapping[str, np.ndarray]


def mixed_adapter(bundle: Bundle, rows: Sequence[str | None], read: Callable[[str], Tensors]) -> ActiveAdapter:
    """What a batch needs whose row ``i`` uses adapter ``rows[i]`` (``None``: the base).

    ``read`` gives an adapter's tensors, but for those that come to the graph in another form.

    Raises:
        UnknownAdapterError: The bundle holds no adapter of that name.
        InputError: An adapter cannot be mixed: it replaces parameters that are one for the whole batch, or begins sequences.
    """
    entries = _check(bundle, rows)
    heads = tuple(head_of(bundle.manifest, name) for name in rows)
    tasks = list(dict.fromkeys(head.task for head in heads))
    if len(tasks) > 1:
        raise InputError(
            f"the adapters of a batch are for {', '.join(map(str, tasks))}, whose outputs differ in shape; run the rows of each "
            "task in a batch of their own (run() does)"
        )
    counts = label_counts(bundle, rows)
    tensors = mixed_tensors(bundle, rows, {name: read(name) for name in entries}, counts)
    labels = tuple(head.labels or numbered(count) or None for head, count in zip(heads, counts, strict=True))
    return ActiveAdapter(
        name="",
        scale=1.0,
        labels=None,
        row_labels=labels,
        row_names=tuple(rows),
        row_texts=tuple(bundle.text_of(name) for name in rows),
        row_embeddings=tuple(bundle.embedding_of(name) for name in rows),
        row_heads=heads,
        head=Head(task=tasks[0]),
        feeds=as_values(tensors),
        identity=("mixed", *rows),
    )


def _check(bundle: Bundle, rows: Sequence[str | None]) -> dict[str, AdapterEntry]:
    entries = {name: bundle.adapter(name) for name in dict.fromkeys(rows) if name is not None}
    before = [name for name, entry in entries.items() if entry.prefix_length]
    if before:
        raise InputError(
            f"adapter {before[0]!r} ({entries[before[0]].method}) puts states before the sequence, so its rows are longer than "
            f"those of others; run them by themselves with adapter({before[0]!r})"
        )
    fixed = [name for name, entry in entries.items() if not entry.per_row]
    if fixed:
        raise InputError(
            f"adapter {fixed[0]!r} ({entries[fixed[0]].method}) edits what cannot differ by row (a convolution, an "
            "embedding, a norm, a bias inside a fused operator, or experts of a traced graph, to which tokens of all rows go "
            f"together); run its rows by themselves with adapter({fixed[0]!r})"
        )
    return entries


def label_counts(bundle: Bundle, rows: Sequence[str | None]) -> list[int]:
    """How many labels each row's head has; 0 where neither adapter nor base names any."""
    return [len(head_of(bundle.manifest, name).labels or ()) for name in rows]


def mixed_tensors(
    bundle: Bundle, rows: Sequence[str | None], loaded: Mapping[str, Tensors], counts: Sequence[int]
) -> dict[str, np.ndarray]:
    """Slot tensors with ``adapter_batch = len(rows)`` of the adapters that are ``loaded`` by name.

    Ranks are padded with zeros to the widest in the batch, gains with ones and heads with zeros, so every row
    computes what it would alone; ``counts`` are the rows' labels. Raises :class:`InputError` where rows replace a
    parameter and others keep the base's, and for a head that has more or fewer outputs than labels.
    """
    slots = bundle.manifest.slots
    mixed: dict[str, np.ndarray] = {}
    names = dict.fromkeys(tensor for tensors in loaded.values() for tensor in tensors)
    gains = {gain for slot in slots.linear for gain in (slot.out_gain, slot.in_gain) if gain is not None}
    replaced = {slot.tensor: slot for slot in slots.overrides}
    for tensor in names:
        mine = [loaded[row].get(tensor) if row is not None else None for row in rows]
        present = [array for array in mine if array is not None]
        override = replaced.get(tensor)
        if override is not None and len(present) < len(rows) and override.parameter not in bundle.manifest.base.fresh:
            raise InputError(
                f"some rows replace {override.parameter} and others keep the base's; run them in batches of their own"
            )
        shape = [max(array.shape[axis] for array in present) for axis in (1, 2)]
        if override is not None and is_label_axis(override.shape[-1]):
            _check_head(rows, mine, counts)
            shape[1] = max(shape[1], *counts)
        fill = np.ones if tensor in gains else np.zeros
        whole = fill((len(rows), *shape), np.float32)
        for row, array in enumerate(mine):
            if array is not None:
                whole[row, : array.shape[1], : array.shape[2]] = array[0]
        mixed[tensor] = whole
    return mixed


def _check_head(rows: Sequence[str | None], head: Sequence[np.ndarray | None], counts: Sequence[int]) -> None:
    for name, array, count in zip(rows, head, counts, strict=True):
        if array is not None and array.shape[-1] != count:
            raise InputError(f"adapter {name!r} has a head of {array.shape[-1]} outputs but {count} labels")


def hide_padding(outputs: dict[str, np.ndarray], row_labels: Sequence[tuple[str, ...] | None]) -> None:
    """Set logits behind a row's own labels to minus infinity, in place: no probability, never the best.

    ``logits`` is ``[rows, ..., labels]`` with as many labels as the row that has most; other outputs have no such axis.
    """
    counts = [len(labels) for labels in row_labels if labels is not None]
    if "logits" not in outputs or len(set(counts)) < 2:
        return
    logits = outputs["logits"] = np.array(outputs["logits"])
    for row, labels in enumerate(row_labels):
        if labels is not None:
            logits[row, ..., len(labels) :] = -np.inf
