"""The heads of a bundle, by adapter."""

from __future__ import annotations

from .heads import Head, inherited, is_label_axis
from .manifest import AdapterEntry, Manifest


def head_of(manifest: Manifest, adapter: str | None) -> Head:
    """The head that an adapter of a bundle runs with; ``None`` is the base."""
    base = Head(manifest.labels, manifest.problem_type, manifest.activation, manifest.task)
    if adapter is None or adapter not in manifest.adapters:
        return base
    entry = manifest.adapters[adapter]
    task = entry.task or manifest.task
    own = Head(entry.labels, entry.problem_type, entry.activation, task)
    if entry.task is not None and entry.task != manifest.task:
        return own
    parameters = [slot.parameter for slot in manifest.slots.overrides]
    found = inherited(own, base, head_width(manifest, entry), parameters)
    # A bundle whose task has no labels (a language model's) gives an adapter none.
    return found if found.labels is not None else own


def head_width(manifest: Manifest, entry: AdapterEntry) -> int | None:
    """How many outputs the head has that an adapter brings; ``None`` where it brings none."""
    return next(
        (
            entry.tensors[slot.tensor][-1]
            for slot in manifest.slots.overrides
            if slot.tensor in entry.tensors and is_label_axis(slot.shape[-1])
        ),
        None,
    )
