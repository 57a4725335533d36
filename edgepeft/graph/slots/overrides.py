"""Slots that replace a parameter of the base: heads a row each, linear weights, and everything else where it stands."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...bundle.slots import OverrideSlot
from ...errors import SiteError
from ..locate.by_content import Location, shared
from ..nodes import Chain, is_flat, is_quantized, linear_users, slot_input, split_bias
from ..passes.edit import home_of
from ..passes.untie import Untie
from .sites import Sites


class Overrides:
    """Adds them to ``model``, one after the other; ``slots`` are those added."""

    def __init__(self, model: ir.Model, sites: Sites) -> None:
        self.model = model
        self.graph = model.graph
        self.sites = sites
        self.slots: list[OverrideSlot] = []

    def add(self, parameter: str) -> None:
        """A slot that replaces ``parameter``: heads per row, everything else where it stands."""
        if any(slot.parameter == parameter for slot in self.slots):
            return
        if any(is_quantized(self.sites.value(place)) for place in self.sites.locations.get(parameter, ())):
            raise SiteError(
                f"parameter {parameter} is stored in blocks of few bits in this graph, and an adapter's whole tensor cannot take "
                "its place; export the adapter over a base in fp32"
            )
        self.sites.locations = Untie(self.sites.locations, self.sites.tied, [parameter])(self.model).locations
        locations = self.sites.locations.get(parameter, ())
        if not locations or any(location.packed or location.of is not None for location in locations):
            apart = any(location.of is not None for location in locations)
            where = "is spread over" if apart else "is packed with others in" if locations else "was not found in"
            raise SiteError(
                f"parameter {parameter} {where} the graph and cannot be replaced at run time; use --mode merge"
            )
        also = shared(self.sites.locations, parameter)
        if also:
            raise SiteError(
                f"parameter {parameter} holds the same numbers as {', '.join(also)}; which is which cannot be told"
            )
        site, _, leaf = parameter.rpartition(".")
        places = self.sites.linear_locations(f"{site}.weight")
        if places and self.sites.is_head(f"{site}.weight"):
            self._add_head(site, places[0], self.sites.label_axis(f"{site}.weight"))
            return
        if len(places) == 1 and self._is_fresh_layer(site):
            self._add_head(site, places[0], None)
            return
        if leaf == "weight" and (location := self.sites.linear_location(parameter)) is not None:
            self._add_matmul(parameter, location)
            return
        values = [self.sites.value(location) for location in locations]
        if len(values) != 1:
            raise SiteError(f"parameter {parameter} stands at {len(values)} places in the graph; use --mode merge")
        value = values[0]
        if parameter != value.name:
            value.name = parameter if parameter not in self.graph.initializers else f"{parameter}.slot"
        self.graph.inputs.append(value)
        self.slots.append(
            OverrideSlot(
                parameter=parameter,
                tensor=value.name or "",
                shape=tuple(int(dim) for dim in self.sites.weights[parameter].shape),
                layout="as_is",
                per_row=False,
            )
        )

    def _is_fresh_layer(self, site: str) -> bool:
        """Whether adapters bring a linear layer whole (a pooler, a head's inner layer), and its bias is added plainly.

        Rows of a batch may then differ in it. Elsewhere a bias has one value for the batch, as fused operators take it.
        """
        places = self.sites.locations.get(f"{site}.bias", ())
        if not {f"{site}.weight", f"{site}.bias"} <= self.sites.fresh or len(places) != 1:
            return False
        uses = [(user.op_type, user.domain) for user, _ in self.sites.value(places[0]).uses()]
        return uses in ([("Add", "")], [("Gemm", "")])

    def _add_head(self, site: str, location: Location, axis: str | None) -> None:
        """Classifier weight and bias as ``[adapter_batch, hidden, labels]`` and ``[adapter_batch, 1, labels]``.

        ``axis`` is what the labels are called as a dimension; ``None``: as many as the base has, in every adapter.
        """
        has_bias = f"{site}.bias" in self.sites.weights
        if has_bias and not self.sites.locations.get(f"{site}.bias"):
            raise SiteError(
                f"parameter {site}.bias was not found in the graph, so the head at {site} cannot be replaced"
            )
        logits = (axis or "").removesuffix("labels") + "logits"
        width = axis or int(self.sites.weights[f"{site}.weight"].shape[0])
        self._add_matmul(f"{site}.weight", location, out=axis)
        for output in self.graph.outputs:
            if axis is not None and output.shape is not None and output.name == logits:
                output.shape = ir.Shape([*list(output.shape)[:-1], axis])
        if not has_bias:
            return
        value = self.sites.value(self.sites.locations[f"{site}.bias"][0])
        name = f"{site}.bias"
        array = self.sites.weights[name].astype(np.float32, copy=False).reshape(1, 1, -1)
        slot = slot_input(self.graph, f"{name}.slot", ("adapter_batch", 1, width), array)
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
            home_of(squeeze).insert_before(squeeze, chain.nodes)
            squeeze.replace_input_with(0, total)
            self._bypass(user, other)
        else:
            user.replace_input_with(index, slot)
            if axis is not None:
                _widen(user.outputs[0], axis)
        self.sites.gone(value.name or "")
        del self.graph.initializers[value.name or ""]
        self.slots.append(
            OverrideSlot(
                parameter=name, tensor=slot.name or "", shape=("adapter_batch", 1, width), layout="row", per_row=True
            )
        )

    def _bypass(self, node: ir.Node, value: ir.Value) -> None:
        """Drop ``node``; its consumers, graph outputs included, take ``value``."""
        old = node.outputs[0]
        if old.is_graph_output():
            old.name, value.name = f"{old.name}/base_output", old.name
            value.shape, value.type = old.shape, old.type
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        home_of(node).remove(node, safe=True)

    def _add_matmul(self, parameter: str, location: Location, out: str | None = None) -> None:
        """A linear weight as ``[adapter_batch, in, out]``, multiplied by a MatMul of its own."""
        weight = self.sites.weights[parameter]
        old = self.sites.value(location)
        width = out or int(weight.shape[0])
        shape = ("adapter_batch", int(weight.shape[1]), width)
        slot = slot_input(self.graph, f"{parameter}.slot", shape, np.ascontiguousarray(weight.T, np.float32)[None])
        for node in linear_users(old):
            split_bias(self.graph, node)
            chain = Chain(self.graph, parameter if node is linear_users(old)[0] else f"{parameter}.{node.name}")
            x, y = node.inputs[0], node.outputs[0]
            assert x is not None
            flat = is_flat(node)
            product = chain.add("MatMul", [chain.unsqueeze(x, "x") if flat else x, slot], "MatMul")
            total = chain.squeeze(product, "y") if flat else product
            chain.replace(y, total)
            if out is not None:
                _widen(total, out)
            home_of(node).remove(node, safe=True)
        del self.graph.initializers[location.initializer]
        self.sites.gone(location.initializer)
        self.slots.append(
            OverrideSlot(parameter=parameter, tensor=slot.name or "", shape=shape, layout="matmul", per_row=True)
        )


def _widen(value: ir.Value, axis: str) -> None:
    """Declare that a head's output is as wide as an adapter makes it: ONNX Runtime plans its memory by declared shapes."""
    if value.shape is not None and len(value.shape):
        value.shape = ir.Shape([*list(value.shape)[:-1], axis])
