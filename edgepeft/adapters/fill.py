"""From an adapter's edits to the tensors that fill a base's slots."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from ..bundle.heads import is_label_axis
from ..bundle.slots import ConvSlot, Dim, EmbeddingSlot, LinearSlot, OverrideSlot, SlotPart, SlotTable, shape_fits
from ..errors import AdapterMismatchError, UnsupportedAdapterError
from .edits import Adapter, Array, SiteEdit


@dataclass(frozen=True)
class FilledSlots:
    """Slot tensors by name (leading ``adapter_batch`` of 1), the rank used in each slot, and whether rows may differ."""

    tensors: dict[str, Array]
    ranks: dict[str, int]
    per_row: bool
    #: The width of the head the adapter brings, where it brings one.
    labels: int | None


def _check_size(adapter: Adapter, slot: LinearSlot, part: SlotPart, edit: SiteEdit) -> None:
    for actual, expected, side in (
        (edit.in_features, slot.in_features, "in"),
        (edit.out_features, part.features, "out"),
    ):
        if actual is not None and actual != expected:
            raise AdapterMismatchError(
                f"adapter {adapter.name!r}, site {part.site}: its {side} size is {actual}, the base's is {expected}. "
                "The adapter was made for another base."
            )


def _fill_linear(
    adapter: Adapter, slot: LinearSlot, edits: list[tuple[SlotPart, SiteEdit]]
) -> tuple[dict[str, Array], int]:
    """One slot's tensors. In a packed matrix the A's stand side by side and the B's block-diagonally."""
    tensors: dict[str, Array] = {}
    for part, edit in edits:
        _check_size(adapter, slot, part, edit)
    low = {part.site: edit.low_rank for part, edit in edits if edit.low_rank is not None}
    rank = sum(low_rank.rank for low_rank in low.values())
    if rank:
        b = np.zeros((rank, slot.out_features), np.float32)
        row = 0
        for site, low_rank in low.items():
            for part in (part for part, _ in edits if part.site == site):
                columns = slice(part.offset, part.offset + part.size)
                b[row : row + low_rank.rank, columns] = low_rank.b[:, part.outputs]
            row += low_rank.rank
        tensors[slot.a] = np.ascontiguousarray(np.concatenate([low_rank.a for low_rank in low.values()], axis=1))[None]
        tensors[slot.b] = b[None]
    out = [(part, edit.out_gain) for part, edit in edits if edit.out_gain is not None]
    if out:
        gain = np.ones(slot.out_features, np.float32)
        for part, gained in out:
            gain[part.offset : part.offset + part.size] = gained.gain[part.outputs]
        if slot.out_gain is None:
            raise AdapterMismatchError(
                f"adapter {adapter.name!r} ({adapter.method}) scales the output at {slot.name}; this base has no gain slot "
                "there. Export the base again together with this adapter."
            )
        tensors[slot.out_gain] = gain[None, None]
    inward = [edit.in_gain for _, edit in edits if edit.in_gain is not None]
    if inward:
        if slot.in_gain is None or len(slot.sites) > 1:
            raise AdapterMismatchError(
                f"adapter {adapter.name!r} ({adapter.method}) scales the input at {slot.name}; this base has no gain slot "
                "there. Export the base again together with this adapter."
            )
        tensors[slot.in_gain] = inward[0].gain[None, None]
    return tensors, rank


def _fill_single(adapter: Adapter, slot: ConvSlot | EmbeddingSlot, edit: SiteEdit) -> tuple[dict[str, Array], int]:
    """The tensors of a slot that serves one site: a convolution's or an embedding's."""
    sizes = (
        (int(np.prod((slot.in_channels, *slot.kernel))), slot.out_channels)
        if isinstance(slot, ConvSlot)
        else (slot.rows, slot.width)
    )
    for found, expected, side in ((edit.in_features, sizes[0], "in"), (edit.out_features, sizes[1], "out")):
        if found is not None and found != expected:
            raise AdapterMismatchError(
                f"adapter {adapter.name!r}, site {slot.name}: its {side} size is {found}, the base's is {expected}. The adapter "
                "was made for another base."
            )
    shapes = dict(slot.tensors())
    tensors: dict[str, Array] = {}
    low = edit.low_rank
    if low is not None and low.rank:
        a, b = (low.a.T, low.b.T) if isinstance(slot, ConvSlot) else (low.a, low.b)
        for name, array in ((slot.a, a), (slot.b, b)):
            shape = tuple(low.rank if isinstance(dim, str) else dim for dim in shapes[name])
            tensors[name] = np.ascontiguousarray(array.reshape(shape))
    gain = slot.out_gain if isinstance(slot, ConvSlot) else None
    if edit.in_gain is not None or (edit.out_gain is not None and gain is None):
        raise AdapterMismatchError(
            f"adapter {adapter.name!r} ({adapter.method}) scales what goes through {slot.name}; this base has no gain slot there. "
            "Export the base again together with this adapter, or with --mode merge."
        )
    if edit.out_gain is not None and gain is not None:
        tensors[gain] = np.ascontiguousarray(edit.out_gain.gain.reshape([int(dim) for dim in shapes[gain]]))
    return tensors, edit.rank


def _fill_override(adapter: Adapter, slot: OverrideSlot, tensor: Array) -> Array:
    match slot.layout:
        case "as_is":
            array = tensor
        case "matmul":
            array = np.ascontiguousarray(tensor.T)[None]
        case "row":
            array = tensor.reshape(1, 1, -1)
    check_shape(array.shape, slot.shape, f"adapter {adapter.name!r}, parameter {slot.parameter}")
    return array


def check_shape(found: tuple[int, ...], expected: tuple[Dim, ...], what: str) -> None:
    """Raise :class:`AdapterMismatchError` where ``found`` differs from a fixed dimension of ``expected``."""
    if not shape_fits(found, expected):
        raise AdapterMismatchError(f"{what}: shape {found}, the slot takes {expected}. It was made for another base.")


def _missing(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_swappable(adapter: Adapter) -> None:
    """Raise :class:`UnsupportedAdapterError` for an adapter that can only be merged, with the reason."""
    if adapter.merge_only:
        raise UnsupportedAdapterError(
            f"adapter {adapter.name!r} ({adapter.method}) can only be merged: {adapter.merge_only}. Export it with --mode merge."
        )


def fill_slots(adapter: Adapter, table: SlotTable, *, fresh: Collection[str] = ()) -> FilledSlots:
    """The tensors with which ``adapter`` fills the slots of ``table``; slots it does not touch are left to their defaults.

    States before the sequence are no slots: :func:`edgepeft.adapters.prefix.fill_prefix` gives their tensors.

    ``fresh`` parameters, which the base's checkpoint does not hold, must be among the adapter's overrides: otherwise its
    result would depend on numbers nobody saved. Raises :class:`AdapterMismatchError` for a site or parameter without a
    slot, for sizes that differ, and for a label count that clashes with the adapter's labels.
    """
    check_swappable(adapter)
    served = {site for slot in table.factored for site in slot.sites}
    homeless = [site for site in adapter.sites if site not in served]
    homeless += [name for name in adapter.overrides if table.override(name) is None]
    if homeless:
        raise AdapterMismatchError(
            f"adapter {adapter.name!r} edits {_missing(homeless)}, where this base has no slot. Export the base again with "
            "this adapter, or with --slots all-linear; --mode merge needs no slots."
        )
    unfilled = [name for name in fresh if name not in adapter.overrides]
    if unfilled:
        raise AdapterMismatchError(
            f"the base checkpoint does not hold {_missing(unfilled)} and adapter {adapter.name!r} does not bring it: with PEFT "
            "it is random at every load. Train with it in modules_to_save."
        )
    tensors: dict[str, Array] = {}
    ranks: dict[str, int] = {}
    for slot in table.linear:
        edits = [(part, adapter.sites[part.site]) for part in slot.parts if part.site in adapter.sites]
        if edits:
            filled, rank = _fill_linear(adapter, slot, edits)
            tensors.update(filled)
            ranks[slot.name] = rank
    for single in table.singles:
        if single.name in adapter.sites:
            filled, rank = _fill_single(adapter, single, adapter.sites[single.name])
            tensors.update(filled)
            ranks[single.name] = rank
    per_row = all(slot.per_row for slot in table.factored if slot.name in ranks)
    labels = None
    for override in table.overrides:
        if override.parameter in adapter.overrides:
            tensor = adapter.overrides[override.parameter].tensor
            tensors[override.tensor] = _fill_override(adapter, override, tensor)
            per_row &= override.per_row
            if override.shape and is_label_axis(override.shape[-1]):
                if labels is not None and labels != tensor.shape[0]:
                    raise AdapterMismatchError(
                        f"adapter {adapter.name!r}: its head has {labels} labels in one parameter and {tensor.shape[0]} in "
                        f"{override.parameter}"
                    )
                labels = tensor.shape[0]
    if labels is not None and adapter.labels is not None and len(adapter.labels) != labels:
        raise AdapterMismatchError(
            f"adapter {adapter.name!r}: its head has {labels} labels, its record names {len(adapter.labels)}: "
            f"{', '.join(adapter.labels)}"
        )
    return FilledSlots(tensors=tensors, ranks=ranks, per_row=per_row, labels=labels)
