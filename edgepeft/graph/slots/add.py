"""Slots of one graph: inputs through which adapters reach a base at run time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from ...adapters.edits import Adapter, SiteEdit
from ...adapters.fill import check_swappable
from ...bundle.slots import ConvSlot, EmbeddingSlot, LinearSlot, SlotTable
from ...errors import SiteError
from ..editable import EditableBase, SlottedBase
from ..locate.by_content import Location, shared
from ..nodes import (
    Chain,
    behind_bias,
    factor_input,
    is_flat,
    linear_features,
    linear_users,
    slot_input,
    split_bias,
    weight_is_transposed,
)
from ..passes.edit import home_of
from .conv_and_embedding import add_convolution, add_embedding
from .overrides import Overrides
from .sites import Sites, linear_sites, not_found


def _slot_name(sites: Sequence[str]) -> str:
    """One site's own name; for a packed matrix the common path and the parts, ``…self.query_key_value``."""
    if len(sites) == 1:
        return sites[0]
    parents = zip(*(site.split(".")[:-1] for site in sites), strict=False)
    parent = ".".join(level[0] for level in itertools.takewhile(lambda level: len(set(level)) == 1, parents))
    return f"{parent}.{'_'.join(site.rpartition('.')[2] for site in sites)}"


def _has_own_rows(node: ir.Node) -> bool:
    """Whether a linear node's activation has an axis for the batch, so that rows of a batch may differ.

    It has none where it is 1 in every run, and where a traced mixture of experts stands sequences behind each other
    (``[batch * sequence, n]``) or takes the tokens of one expert out of them.
    """
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or len(shape) > 3:
        return True
    if len(shape) == 3:
        return shape[0] != 1
    first = "" if isinstance(shape[0], int) else str(shape[0].value)
    return "*" not in first and not first.startswith("unk__")


class _Inserter:
    """Adds slots that take factors to a graph, one after the other."""

    def __init__(self, graph: ir.Graph, sites: Sites) -> None:
        self.graph = graph
        self.sites = sites
        self.linear: list[LinearSlot] = []
        self.convolutions: list[ConvSlot] = []
        self.lookups: list[EmbeddingSlot] = []

    def add_single(self, site: str, kind: str, value: ir.Value, *, out_gain: bool, in_gain: bool) -> None:
        """A slot at a convolution or an embedding."""
        if in_gain or (out_gain and kind == "gather"):
            raise SiteError(
                f"site {site}: an adapter scales it, which a slot cannot at this kind of layer; use --mode merge"
            )
        also = [other for other in shared(self.sites.locations, f"{site}.weight") if kind == "conv"]
        if also:
            raise SiteError(f"{site}.weight holds the same numbers as {', '.join(also)}; which is which cannot be told")
        if kind == "conv":
            self.convolutions.append(add_convolution(self.graph, site, value, out_gain=out_gain))
        else:
            self.lookups.append(add_embedding(self.graph, site, value))

    def add_linear(self, location: Location, *, out_gain: bool, in_gain: bool) -> None:
        value = self.sites.value(location)
        parts = self.sites.parts_of(location.initializer)
        sites = list(dict.fromkeys(part.site for part in parts))
        name = _slot_name(sites)
        if any(slot.name == name for slot in self.linear):
            name = f"{name}.{sum(slot.name.startswith(name) for slot in self.linear)}"
        users = linear_users(value)
        transposed = weight_is_transposed(users[0])
        in_features, out_features = linear_features(users[0], value)
        if in_gain and len(sites) > 1:
            raise SiteError(
                f"{name}: an adapter scales the input of one of several sites that share a packed matrix; use --mode merge"
            )
        slot = LinearSlot(
            name=name,
            in_features=in_features,
            out_features=out_features,
            parts=tuple(parts),
            a=f"{name}.lora_A",
            b=f"{name}.lora_B",
            rank=f"{name}.rank",
            out_gain=f"{name}.out_gain" if out_gain else None,
            in_gain=f"{name}.in_gain" if in_gain else None,
            weight=location.initializer,
            transposed=transposed,
            per_row=all(_has_own_rows(node) for node in users),
        )
        shapes = dict(slot.tensors())
        a = slot_input(self.graph, slot.a, shapes[slot.a], np.zeros((1, in_features, 0), np.float32))
        b = factor_input(self.graph, slot.b, shapes[slot.b], out_axis=2)
        gains = {}
        for gain, width in ((slot.out_gain, out_features), (slot.in_gain, in_features)):
            if gain is not None:
                gains[gain] = slot_input(self.graph, gain, shapes[gain], np.ones((1, 1, width), np.float32))
        for position, node in enumerate(users):
            prefix = name if position == 0 else f"{name}.{position}"
            self._edit(node, prefix, a, b, gains.get(slot.out_gain or ""), gains.get(slot.in_gain or ""))
        self.linear.append(slot)

    def _edit(
        self, node: ir.Node, prefix: str, a: ir.Value, b: ir.Value, out_gain: ir.Value | None, in_gain: ir.Value | None
    ) -> None:
        x = node.inputs[0]
        assert x is not None
        flat = is_flat(node)
        if out_gain is not None:
            split_bias(self.graph, node)
        before = Chain(self.graph, prefix)
        wide = before.unsqueeze(x, "x") if flat else x
        if in_gain is not None:
            wide = before.add("Mul", [wide, in_gain], "in_gain")
            node.replace_input_with(0, before.squeeze(wide, "x_scaled") if flat else wide)
        home_of(node).insert_before(node, before.nodes)
        chain = Chain(self.graph, prefix)
        y = node.outputs[0] if out_gain is not None else behind_bias(node)
        delta = chain.add("MatMul", [chain.add("MatMul", [wide, a], "lora_A"), b], "lora_B")
        if out_gain is None:
            total = chain.add("Add", [y, chain.squeeze(delta, "delta") if flat else delta], "Add")
        else:
            total = chain.add("Add", [chain.unsqueeze(y, "y") if flat else y, delta], "Add")
            total = chain.add("Mul", [total, out_gain], "out_gain")
            if flat:
                total = chain.squeeze(total, "y_scaled")
        chain.replace(y, total)


def _wanted(adapters: Iterable[Adapter]) -> tuple[dict[str, SiteEdit], dict[str, tuple[bool, bool]], list[str]]:
    edits: dict[str, SiteEdit] = {}
    gains: dict[str, tuple[bool, bool]] = {}
    overrides: list[str] = []
    for adapter in adapters:
        for site, edit in adapter.sites.items():
            edits.setdefault(site, edit)
            out_gain, in_gain = gains.get(site, (False, False))
            gains[site] = (out_gain or edit.out_gain is not None, in_gain or edit.in_gain is not None)
        overrides.extend(name for name in adapter.overrides if name not in overrides)
    return edits, gains, overrides


def add_slots_to_graph(
    base: EditableBase,
    adapters: Sequence[Adapter] = (),
    *,
    reserve: Literal["adapters", "all-linear"] = "adapters",
) -> SlottedBase:
    """A copy of the base's graph with slots where ``adapters`` need them, or at every linear site for adapters to come.

    Parameters that the checkpoint does not hold always get a slot, since only an adapter can fill them. Every default is
    the base's own number, or a rank of zero: without an adapter the outputs are the base's, bit for bit with low-rank and
    gain slots. (An override takes the place of a constant that ONNX Runtime would have packed; the same numbers are then
    summed in another order, about 1e-7.) Raises
    :class:`SiteError` for a site that is missing, ambiguous or cannot be edited at run time.
    """
    for adapter in adapters:
        check_swappable(adapter)
    graph, weights, fresh = base.graph, base.weights, set(base.fresh)
    model = graph.clone()
    before = len(model.graph)
    graph_sites = Sites(model.graph, base)
    inserter, replaced = _Inserter(model.graph, graph_sites), Overrides(model, graph_sites)
    edits, gains, overrides = _wanted(adapters)
    overrides.extend(name for name in weights if name in fresh and name not in overrides)
    overridden = {name.removesuffix(".weight") for name in overrides}
    sites = list(edits)
    if reserve == "all-linear":
        reserved = linear_sites(base)
        heads = [site for site in reserved if graph_sites.is_head(f"{site}.weight")]
        overrides.extend(f"{site}.weight" for site in heads if f"{site}.weight" not in overrides and site not in edits)
        overridden |= set(heads) - set(edits)
        sites.extend(site for site in reserved if site not in edits and site not in overridden)
    singles: list[tuple[str, str, ir.Value]] = []
    by_initializer: dict[str, list[str]] = {}
    wanted_at: dict[str, Location] = {}
    for site in sites:
        places = graph_sites.linear_locations(f"{site}.weight")
        single = graph_sites.single(site, edits.get(site))
        if not places and single is None:
            raise SiteError(not_found(site, base))
        if site in overridden:
            raise SiteError(
                f"site {site}: one adapter replaces its weight and another edits it; use --mode merge for one of them"
            )
        if single is not None:
            singles.append((site, *single))
            continue
        for location in places:
            if site not in by_initializer.setdefault(location.initializer, []):
                by_initializer[location.initializer].append(site)
            wanted_at[location.initializer] = location
    order = {name: position for position, name in enumerate(weights)}
    for initializer in sorted(by_initializer, key=lambda name: order[f"{by_initializer[name][0]}.weight"]):
        at_site = [gains.get(site, (False, False)) for site in by_initializer[initializer]]
        inserter.add_linear(
            wanted_at[initializer], out_gain=any(g[0] for g in at_site), in_gain=any(g[1] for g in at_site)
        )
    for site, kind, value in singles:
        out_gain, in_gain = gains[site]
        inserter.add_single(site, kind, value, out_gain=out_gain, in_gain=in_gain)
    for parameter in overrides:
        replaced.add(parameter)
    table = SlotTable(
        linear=tuple(inserter.linear),
        overrides=tuple(replaced.slots),
        convolutions=tuple(inserter.convolutions),
        embeddings=tuple(inserter.lookups),
    )
    return SlottedBase(graph=model, table=table, added_nodes=len(model.graph) - before)
