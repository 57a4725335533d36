"""``add_slots``: graph inputs through which adapters reach a base at run time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from ..adapters.fill import check_swappable
from ..adapters.form import Adapter, SiteEdit
from ..bundle.manifest import ConvSlot, EmbeddingSlot, LinearSlot, OverrideSlot, SlotPart, SlotTable
from ..errors import SiteError
from .form import EditableBase, SlottedBase
from .locate import Location, shared
from .separate import separate
from .singles import add_convolution, add_embedding, conv_users, gather_users
from .surgery import (
    Chain,
    behind_bias,
    is_flat,
    is_quantized,
    linear_features,
    linear_users,
    slot_input,
    split_bias,
    weight_is_transposed,
)

Locations = Mapping[str, tuple[Location, ...]]


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
    def __init__(self, graph: ir.Model, base: EditableBase, labels: int | None) -> None:
        locations, weights = base.locations, base.weights
        self.tied = base.tied
        self.model = graph
        self.graph = graph.graph
        #: Embeddings whose numbers a head multiplies by: the linear site at that place is the head's, not theirs.
        self.embeddings = set(base.tied.values())
        self.locations = locations
        self.weights = weights
        self.labels = labels
        self.linear: list[LinearSlot] = []
        self.overrides: list[OverrideSlot] = []
        self.convolutions: list[ConvSlot] = []
        self.lookups: list[EmbeddingSlot] = []

    # ── finding ──
    def value(self, location: Location) -> ir.Value:
        return self.graph.initializers[location.initializer]

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
        found = self.linear_locations(parameter)
        if len(found) > 1:
            raise SiteError(
                f"{parameter} was found at {len(found)} places: {', '.join(loc.initializer for loc in found)}"
            )
        return found[0] if found else None

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

    # ── inserting ──
    def add_single(self, site: str, kind: str, value: ir.Value, *, out_gain: bool, in_gain: bool) -> None:
        """A slot at a convolution or an embedding."""
        if in_gain or (out_gain and kind == "gather"):
            raise SiteError(
                f"site {site}: an adapter scales it, which a slot cannot at this kind of layer; use --mode merge"
            )
        also = [other for other in shared(self.locations, f"{site}.weight") if kind == "conv"]
        if also:
            raise SiteError(f"{site}.weight holds the same numbers as {', '.join(also)}; which is which cannot be told")
        if kind == "conv":
            self.convolutions.append(add_convolution(self.graph, site, value, out_gain=out_gain))
        else:
            self.lookups.append(add_embedding(self.graph, site, value))

    def add_linear(self, location: Location, *, out_gain: bool, in_gain: bool) -> None:
        value = self.value(location)
        parts = self.parts_of(location.initializer)
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
        b = slot_input(self.graph, slot.b, shapes[slot.b], np.zeros((1, 0, out_features), np.float32))
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
        self.graph.insert_before(node, before.nodes)
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

    def add_override(self, parameter: str) -> None:
        """A slot that replaces ``parameter``: heads per row, everything else where it stands."""
        if self.override_done(parameter):
            return
        if any(is_quantized(self.value(place)) for place in self.locations.get(parameter, ())):
            raise SiteError(
                f"parameter {parameter} is stored in blocks of few bits in this graph, and an adapter's whole tensor cannot take "
                "its place; export the adapter over a base in fp32"
            )
        self.locations = separate(self.model, self.locations, self.tied, [parameter])
        locations = self.locations.get(parameter, ())
        if not locations or any(location.packed or location.of is not None for location in locations):
            apart = any(location.of is not None for location in locations)
            where = "is spread over" if apart else "is packed with others in" if locations else "was not found in"
            raise SiteError(
                f"parameter {parameter} {where} the graph and cannot be replaced at run time; use --mode merge"
            )
        also = shared(self.locations, parameter)
        if also:
            raise SiteError(
                f"parameter {parameter} holds the same numbers as {', '.join(also)}; which is which cannot be told"
            )
        site, _, leaf = parameter.rpartition(".")
        places = self.linear_locations(f"{site}.weight")
        if places and self.is_head(f"{site}.weight"):
            self.add_head(site, places[0])
            return
        if leaf == "weight" and (location := self.linear_location(parameter)) is not None:
            self.add_matmul_override(parameter, location)
            return
        values = [self.value(location) for location in locations]
        if len(values) != 1:
            raise SiteError(f"parameter {parameter} stands at {len(values)} places in the graph; use --mode merge")
        value = values[0]
        if parameter != value.name:
            value.name = parameter if parameter not in self.graph.initializers else f"{parameter}.slot"
        self.graph.inputs.append(value)
        self.overrides.append(
            OverrideSlot(
                parameter=parameter,
                tensor=value.name or "",
                shape=tuple(int(dim) for dim in self.weights[parameter].shape),
                layout="as_is",
                per_row=False,
            )
        )

    def override_done(self, parameter: str) -> bool:
        return any(slot.parameter == parameter for slot in self.overrides)

    def is_head(self, weight: str) -> bool:
        """Whether a linear weight gives the logits: as many rows as there are labels, and nothing linear behind it."""
        if self.labels is None or weight not in self.weights or self.weights[weight].shape[0] != self.labels:
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

    def add_head(self, site: str, location: Location) -> None:
        """Classifier weight and bias as ``[adapter_batch, hidden, labels]`` and ``[adapter_batch, 1, labels]``."""
        has_bias = f"{site}.bias" in self.weights
        if has_bias and not self.locations.get(f"{site}.bias"):
            raise SiteError(
                f"parameter {site}.bias was not found in the graph, so the head at {site} cannot be replaced"
            )
        self.add_matmul_override(f"{site}.weight", location, out="labels")
        for output in self.graph.outputs:
            if output.shape is not None and output.name == "logits":
                output.shape = ir.Shape([*list(output.shape)[:-1], "labels"])
        if not has_bias:
            return
        value = self.value(self.locations[f"{site}.bias"][0])
        name = f"{site}.bias"
        array = self.weights[name].reshape(1, 1, -1)
        slot = slot_input(self.graph, f"{name}.slot", ("adapter_batch", 1, "labels"), array)
        (user, index), *others = value.uses()
        if others or user.op_type != "Add":
            raise SiteError(f"{name} is not a plain bias in this graph; use --mode merge")
        flat = user.outputs[0].shape is None or len(user.outputs[0].shape) == 2
        if flat:
            chain = Chain(self.graph, name)
            other = user.inputs[1 - index]
            assert other is not None
            # The head's MatMul was given a sequence axis; add the bias before it is dropped.
            squeeze = other.producer()
            assert squeeze is not None
            assert squeeze.op_type == "Squeeze"
            assert squeeze.inputs[0] is not None
            total = chain.add("Add", [squeeze.inputs[0], slot], "Add")
            self.graph.insert_before(squeeze, chain.nodes)
            squeeze.replace_input_with(0, total)
            self._bypass(user, other)
        else:
            user.replace_input_with(index, slot)
        del self.graph.initializers[value.name or ""]
        self.overrides.append(
            OverrideSlot(
                parameter=name, tensor=slot.name or "", shape=("adapter_batch", 1, "labels"), layout="row", per_row=True
            )
        )

    def _bypass(self, node: ir.Node, value: ir.Value) -> None:
        """Drop ``node``; its consumers, graph outputs included, take ``value``."""
        old = node.outputs[0]
        if old.is_graph_output():
            name = old.name
            for position, output in enumerate(self.graph.outputs):
                if output is old:
                    self.graph.outputs[position] = value
            old.name, value.name = f"{name}/base_output", name
            value.shape, value.type = old.shape, old.type
        old.replace_all_uses_with(value)
        self.graph.remove(node, safe=True)

    def add_matmul_override(self, parameter: str, location: Location, out: str | None = None) -> None:
        """A linear weight as ``[adapter_batch, in, out]``, multiplied by a MatMul of its own."""
        weight = self.weights[parameter]
        old = self.value(location)
        width = out or int(weight.shape[0])
        shape = ("adapter_batch", int(weight.shape[1]), width)
        slot = slot_input(self.graph, f"{parameter}.slot", shape, np.ascontiguousarray(weight.T)[None])
        for node in linear_users(old):
            split_bias(self.graph, node)
            chain = Chain(self.graph, parameter if node is linear_users(old)[0] else f"{parameter}.{node.name}")
            x, y = node.inputs[0], node.outputs[0]
            assert x is not None
            flat = is_flat(node)
            product = chain.add("MatMul", [chain.unsqueeze(x, "x") if flat else x, slot], "MatMul")
            chain.replace(y, chain.squeeze(product, "y") if flat else product)
            self.graph.remove(node, safe=True)
        del self.graph.initializers[location.initializer]
        self.overrides.append(
            OverrideSlot(parameter=parameter, tensor=slot.name or "", shape=shape, layout="matmul", per_row=True)
        )


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


def add_slots(
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
    inserter = _Inserter(model, base, len(base.labels) if base.labels is not None else None)
    edits, gains, overrides = _wanted(adapters)
    overrides.extend(name for name in weights if name in fresh and name not in overrides)
    overridden = {name.removesuffix(".weight") for name in overrides}
    sites = list(edits)
    if reserve == "all-linear":
        reserved = linear_sites(base)
        heads = [site for site in reserved if inserter.is_head(f"{site}.weight")]
        overrides.extend(f"{site}.weight" for site in heads if f"{site}.weight" not in overrides and site not in edits)
        overridden |= set(heads) - set(edits)
        sites.extend(site for site in reserved if site not in edits and site not in overridden)
    singles: list[tuple[str, str, ir.Value]] = []
    by_initializer: dict[str, list[str]] = {}
    wanted_at: dict[str, Location] = {}
    for site in sites:
        places = inserter.linear_locations(f"{site}.weight")
        single = inserter.single(site, edits.get(site))
        if not places and single is None:
            raise SiteError(_not_found(site, base))
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
        inserter.add_override(parameter)
    table = SlotTable(
        linear=tuple(inserter.linear),
        overrides=tuple(inserter.overrides),
        convolutions=tuple(inserter.convolutions),
        embeddings=tuple(inserter.lookups),
    )
    return SlottedBase(graph=model, table=table, added_nodes=len(model.graph) - before)


def _not_found(site: str, base: EditableBase) -> str:
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
