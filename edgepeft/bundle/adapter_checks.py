"""What an adapter says of itself must be what its tensors show: its labels and its ranks."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import AdapterMismatchError
from .heads import is_label_axis
from .manifest import Manifest

Shapes = Mapping[str, tuple[int, ...]]


def check_labels(what: str, tensors: Shapes, labels: tuple[str, ...] | None, manifest: Manifest) -> None:
    """Refuse labels that are not as many as the head has outputs.

    Args:
        what: The adapter, as the message names it.
        tensors: Shapes of the adapter's slot tensors; the last dimension of a head is its labels.
        labels: The adapter's label names; ``None`` for one without.
        manifest: The bundle's. An adapter without a head runs with the base's own.

    Raises:
        AdapterMismatchError: The counts differ, or the tensors of the head disagree with each other.
    """
    widths = {
        tensor: tensors[tensor][-1]
        for slot in manifest.slots.overrides
        if slot.shape and is_label_axis(slot.shape[-1]) and (tensor := slot.tensor) in tensors
    }
    if len(set(widths.values())) > 1:
        sizes = ", ".join(f"{tensor} {width}" for tensor, width in widths.items())
        raise AdapterMismatchError(
            f"{what}: its head has several label counts: {sizes}. Add it again from its checkpoint."
        )
    own = set(widths.values())
    width = own.pop() if own else None if manifest.labels is None else len(manifest.labels)
    if labels is not None and width is not None and len(labels) != width:
        raise AdapterMismatchError(
            f"{what} names {len(labels)} labels ({', '.join(labels)[:120]}), its head has {width}. "
            "Add it again from its checkpoint."
        )


def check_ranks(what: str, tensors: Shapes, ranks: Mapping[str, int], manifest: Manifest) -> None:
    """Refuse ranks that the tensors do not have; :class:`AdapterMismatchError` names the slot."""
    slots = {slot.name: slot for slot in manifest.slots.factored}
    for name, rank in ranks.items():
        slot = slots.get(name)
        if slot is None:
            raise AdapterMismatchError(f"{what} has a rank at {name[:200]}, which is not a slot of this base")
        for tensor, axis in zip((slot.a, slot.b), slot.rank_axes, strict=True):
            found = tensors[tensor][axis] if tensor in tensors else 0
            if found != rank:
                raise AdapterMismatchError(
                    f"{what} should hold {tensor} at rank {rank}, as its ranks say of {name}; it has rank {found}. "
                    "Add it again from its checkpoint."
                )
    for slot in slots.values():
        shapes = {tensor: tensors[tensor] for tensor in (slot.a, slot.b) if tensor in tensors}
        if shapes and slot.name not in ranks:
            raise AdapterMismatchError(f"{what} fills {next(iter(shapes))} and names no rank at {slot.name}")
