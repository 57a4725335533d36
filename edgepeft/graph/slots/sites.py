"""Where a base's sites stand in its graph: what of it is linear, a convolution, a lookup or a head."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from ...adapters.edits import SiteEdit
from ...bundle.slots import SlotPart
from ...errors import SiteError
from ..editable import EditableBase
from ..locate.by_content import Location
from ..nodes import linear_users
from .conv_and_embedding import conv_users, gather_users

Locations = Mapping[str, tuple[Location, ...]]


class Sites:
    """The places of a base's parameters in a graph that is being edited."""

    def __init__(self, graph: ir.Graph, base: EditableBase) -> None:
        self.graph = graph
        self.tied = base.tied
        self.locations: Locations = base.locations
        self.weights = base.weights
        self.head_widths = base.head_widths
        self.fresh = set(base.fresh)
        #: Embeddings whose numbers a head multiplies by: the linear site at that place is the head's, not theirs.
        self.embeddings = set(base.tied.values())

    def value(self, location: Location) -> ir.Value:
        """The initializer at a place."""
        return self.graph.initializers[location.initializer]

    def gone(self, initializer: str) -> None:
        """Forget the places in an initializer that a slot has taken the place of."""
        self.locations = {
            name: tuple(place for place in places if place.initializer != initializer)
            for name, places in self.locations.items()
        }

    def linear_locations(self, parameter: str) -> list[Location]:
        """Where the parameter stands as the right side of a linear node.

        That is more than one place where a fusion packs a module's weight once for each input the module is given
        (DeBERTa's ``query_proj`` meets the tokens and the relative positions).
        """
        if parameter in self.embeddings:
            return []
        return [loc for loc in self.locations.get(parameter, ()) if linear_users(self.value(loc))]

    def linear_location(self, parameter: str) -> Location | None:
        """The one place where the parameter stands as the right side of a linear node."""
        places = self.linear_locations(parameter)
        if len(places) > 1:
            raise SiteError(
                f"{parameter} was found at {len(places)} places: {', '.join(loc.initializer for loc in places)}"
            )
        return places[0] if places else None

    def parts_of(self, initializer: str) -> list[SlotPart]:
        """All linear weights in an initializer, by column."""
        parts: dict[int, SlotPart] = {}
        for name in self.locations:
            if name in self.embeddings:
                continue
            for location in self.locations[name]:
                if location.initializer == initializer and name.endswith(".weight") and self.weights[name].ndim == 2:
                    other = parts.get(location.offset)
                    site = name.removesuffix(".weight")
                    if other is not None:
                        raise SiteError(
                            f"sites {other.site} and {site} hold the same numbers, so which node belongs to which cannot be "
                            "told by content; capture the base by tracing instead of from a given file"
                        )
                    parts[location.offset] = SlotPart(
                        site=site,
                        offset=location.offset,
                        size=location.size,
                        start=location.start,
                        step=location.step,
                        of=location.of,
                    )
        return [parts[offset] for offset in sorted(parts)]

    def single(self, site: str, edit: SiteEdit | None) -> tuple[str, ir.Value] | None:
        """``conv`` or ``gather`` and the weight where the site is a convolution or an embedding, else ``None``."""
        parameter = f"{site}.weight"
        values = [self.value(location) for location in self.locations.get(parameter, ()) if not location.packed]
        if edit is None or not values:
            return None
        for value in values:
            if conv_users(value):
                return "conv", value
        looked_up = next((value for value in values if gather_users(value)), None)
        # A tied head and its embedding may lie in one initializer; the sizes say which of the two is edited.
        sizes = (edit.in_features, edit.out_features)
        fits = all(s is None or s == d for s, d in zip(sizes, self.weights[parameter].shape, strict=True))
        return ("gather", looked_up) if looked_up is not None and fits else None

    def label_axis(self, weight: str) -> str:
        """What the labels of a head are called as a dimension: each task of a base has labels of its own."""
        prefix = next(each for each in self.head_widths if weight.startswith(each))
        return f"{prefix.removeprefix('heads.')}labels"

    def is_head(self, weight: str) -> bool:
        """Whether a linear weight gives the logits: as many rows as there are labels, and nothing linear behind it."""
        prefix = next((each for each in self.head_widths if weight.startswith(each)), None)
        if prefix is None or weight not in self.weights or self.weights[weight].shape[0] != self.head_widths[prefix]:
            return False
        places = self.linear_locations(weight)
        if len(places) != 1:
            return False
        seen: set[int] = set()
        todo = [output for node in linear_users(self.value(places[0])) for output in node.outputs]
        reaches = False
        while todo:
            value = todo.pop()
            reaches |= value.is_graph_output()
            for user, _ in value.uses():
                if id(user) not in seen:
                    seen.add(id(user))
                    if user.op_type in {"MatMul", "Gemm"}:
                        return False
                    todo.extend(user.outputs)
        return reaches


def linear_sites(base: EditableBase) -> list[str]:
    """Every module whose weight is the right side of a linear node, in the base's own order.

    A language model's head is left out: PEFT's ``all-linear`` leaves it out too, and a slot there costs a vocabulary.
    """
    initializers, locations = base.graph.graph.initializers, base.locations
    left_out = {*base.tied.values(), f"{base.head}.weight"}
    return [
        name.removesuffix(".weight")
        for name, array in base.weights.items()
        if name.endswith(".weight")
        and array.ndim == 2
        and name not in left_out
        and any(linear_users(initializers[location.initializer]) for location in locations.get(name, ()))
    ]


def not_found(site: str, base: EditableBase) -> str:
    """Why there is no slot to be had at ``site``, in words."""
    locations, weights = base.locations, base.weights
    if f"{site}.weight" not in weights:
        near = [name for name in linear_sites(base) if name.rpartition(".")[2] == site.rpartition(".")[2]]
        hint = f"; the base has, for example, {near[0]}" if near else ""
        return (
            f"site {site} does not exist in the base{hint}. The adapter was trained on another architecture; "
            "export it over the base that its config names."
        )
    if locations.get(f"{site}.weight"):
        return (
            f"site {site} is neither a linear map, a convolution nor an embedding in the graph, so a slot cannot edit it; use "
            "--mode merge"
        )
    return f"site {site}: its weight {weights[f'{site}.weight'].shape} was not found in the graph by content"
