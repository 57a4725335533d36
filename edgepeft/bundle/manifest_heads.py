"""The heads of a bundle, by adapter."""

from __future__ import annotations

from .heads import Head, inherited, is_label_axis
from .manifest import AdapterEntry, Manifest


def head_of(manifest: Manifest, adapter: str | None) -> Head:
    """The head that an adapter of a bundle runs with; ``None`` is the base."""
    if adapter is None or adapter not in manifest.adapters:
        return base_head(manifest)
    entry = manifest.adapters[adapter]
    base = base_head(manifest, entry.task)
    own = Head(entry.labels, entry.problem_type, entry.activation, base.task)
    parameters = [slot.parameter for slot in manifest.slots.overrides]
    found = inherited(own, base, head_width(manifest, entry), parameters)
    # A bundle whose task has no labels (a language model's) gives an adapter none.
    return found if found.labels is not None else own


def base_head(manifest: Manifest, task: str | None = None) -> Head:
    """The base's own head for one of its tasks; by default for the one that it has without an adapter."""
    task = task or manifest.task
    if task == manifest.task:
        return Head(manifest.labels, manifest.problem_type, manifest.activation, task)
    entry = manifest.tasks[task]
    return Head(entry.labels, entry.problem_type, entry.activation, task)


def task_outputs(manifest: Manifest, task: str | None) -> dict[str, str]:
    """The outputs of a task by the names that its model gives them, and by the graph's."""
    entry = manifest.tasks.get(task or manifest.task)
    return {value.name: value.name for value in manifest.outputs} if entry is None else dict(entry.outputs)


def head_width(manifest: Manifest, entry: AdapterEntry) -> int | None:
    """How many outputs the head has that an adapter brings; ``None`` where it brings none."""
    return next(
        (
            entry.tensors[slot.tensor][-1]
            for slot in manifest.slots.overrides
            if slot.tensor in entry.tensors and slot.shape and is_label_axis(slot.shape[-1])
        ),
        None,
    )
