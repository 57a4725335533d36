"""Slots and merging over a base of one graph or of two: an encoder-decoder's edits go to the graph that holds the site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from ..adapters.edits import Adapter
from ..bundle.slots import SlotTable
from .editable import EditableBase, MergedBase, SlottedBase
from .locate.by_content import Location
from .merge import merge_graph
from .slots.add import add_slots_to_graph

Slot = TypeVar("Slot", bound=Any)
Locations = Mapping[str, tuple[Location, ...]]


class _DecoderOf:
    """The decoder's graph of a base, as a base of its own."""

    def __init__(self, base: EditableBase) -> None:
        assert base.decoder is not None
        self.graph = base.decoder.graph
        self.locations = base.decoder.locations
        self.weights = base.weights
        self.fresh = base.fresh
        self.labels = base.labels
        self.head_widths = base.head_widths
        self.tied = base.tied
        self.head = base.head
        self.decoder = None


def _share(adapter: Adapter, here: Locations, *, rest: bool, there: Locations) -> Adapter:
    """The edits whose parameter lies ``here``; ``rest`` takes those too that lie nowhere, so that they are refused."""

    def mine(parameter: str) -> bool:
        return bool(here.get(parameter)) or (rest and not there.get(parameter))

    return replace(
        adapter,
        sites={site: edit for site, edit in adapter.sites.items() if mine(f"{site}.weight")},
        overrides={name: override for name, override in adapter.overrides.items() if mine(name)},
    )


def _shares(base: EditableBase, adapter: Adapter) -> tuple[Adapter, Adapter]:
    assert base.decoder is not None
    first, second = base.locations, base.decoder.locations
    return _share(adapter, first, rest=True, there=second), _share(adapter, second, rest=False, there=first)


def _union(one: tuple[Slot, ...], other: tuple[Slot, ...]) -> tuple[Slot, ...]:
    """Slots of both graphs; one that both have (a shared embedding) is one slot under one name."""
    return (*one, *(slot for slot in other if slot not in one))


def add_slots(
    base: EditableBase, adapters: Sequence[Adapter] = (), *, reserve: Literal["adapters", "all-linear"] = "adapters"
) -> SlottedBase:
    """Add the slots that adapters need to a base of one graph, or to both graphs of an encoder-decoder.

    Args:
        base: A captured base; its graphs stay as they are.
        adapters: What the slots must take: each site and parameter that one of them edits gets a slot.
        reserve: ``"all-linear"`` adds slots at every linear site besides, for adapters to come.

    Returns:
        Copies of the graphs with slots, and the table of all of them. Slots are empty by default: without an adapter the
        graphs compute the base's own numbers. A linear slot is ``A [adapter_batch, in, rank]`` and
        ``B [adapter_batch, rank, out]``.

    Raises:
        SiteError: A site is not in the graphs, or what an adapter asks for cannot be a slot there.

    Example:
        >>> base = capture("org/model", task="text-classification")
        >>> adapter = read_adapter("./reviews-lora", name="reviews", weights=base.weight)
        >>> slotted = add_slots(base, [adapter])
    """
    if base.decoder is None:
        return add_slots_to_graph(base, adapters, reserve=reserve)
    shares = [_shares(base, adapter) for adapter in adapters]
    first = add_slots_to_graph(base, [share for share, _ in shares], reserve=reserve)
    second = add_slots_to_graph(_DecoderOf(base), [share for _, share in shares], reserve=reserve)
    table = SlotTable(
        linear=_union(first.table.linear, second.table.linear),
        overrides=_union(first.table.overrides, second.table.overrides),
        convolutions=_union(first.table.convolutions, second.table.convolutions),
        embeddings=_union(first.table.embeddings, second.table.embeddings),
    )
    return SlottedBase(
        graph=first.graph,
        table=table,
        added_nodes=first.added_nodes + second.added_nodes,
        decoder=second.graph,
    )


def merge(base: EditableBase, adapter: Adapter) -> MergedBase:
    """Fold an adapter into the weights of a base of one graph, or of both graphs of an encoder-decoder.

    Args:
        base: A captured base; its graphs stay as they are.
        adapter: What is folded in: ``W' = g * (W + (A B)^T) * l`` at each site, and parameters that it replaces.

    Returns:
        Copies of the graphs with the merged weights: no slots, no further nodes.

    Raises:
        SiteError: A parameter is not in the graphs, or stands in for several.
        AdapterMismatchError: Sizes differ, or a parameter that the checkpoint lacks is not brought by the adapter.
        UnsupportedAdapterError: The adapter puts states before the sequence, which no change of weights expresses.

    Example:
        >>> base = capture("org/model", task="text-classification")
        >>> merged = merge(base, read_adapter("./reviews-lora", name="reviews", weights=base.weight))
        >>> write_bundle("merged", base, merged)
    """
    if base.decoder is None:
        return merge_graph(base, adapter)
    first, second = _shares(base, adapter)
    return MergedBase(
        graph=merge_graph(base, first).graph, adapter=adapter, decoder=merge_graph(_DecoderOf(base), second).graph
    )
