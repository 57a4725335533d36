"""Carrying out a plan: the graph in float16, or in float32 with every number rounded as float16 would round it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from ...graph.nodes import FLOAT
from ...graph.passes.edit import insert_behind
from .operators import Halvable
from .plan import HalfPlan, is_float

HALF = ir.TensorType(ir.DataType.FLOAT16)


def to_halves(model: ir.Model, floats: Collection[str], plan: HalfPlan) -> None:
    """Turn a prepared graph into float16 as planned, in place.

    Inputs and outputs keep their float32, but for the cache where the plan has it; so do slots, which a Cast reads.
    """
    _Rewrite(model.graph, floats, plan, emulated=False).run()


def emulate_halves(model: ir.Model, floats: Collection[str], plan: HalfPlan) -> None:
    """Round every number that is float16 in the plan, in place: weights, and each value behind the node that makes it.

    ONNX Runtime's CPU widens float16 to float32 over whole stretches of a graph, where nothing overflows and little is rounded.
    This graph computes in float32 too, but a Cast there and back stands on every edge. What a kernel keeps to itself is not seen.
    """
    _Rewrite(model.graph, floats, plan, emulated=True).run()


class _Rewrite:
    def __init__(self, graph: ir.Graph, floats: Collection[str], plan: HalfPlan, *, emulated: bool) -> None:
        self.graph, self.floats, self.plan, self.emulated = graph, floats, plan, emulated
        self._opsets = dict(graph.opset_imports)
        self._cast: dict[tuple[str, bool], ir.Value] = {}
        self._halves: dict[str, ir.Value] = {}
        self._before = list(graph)

    def run(self) -> None:
        outputs = {id(value): value.name or "" for value in self.graph.outputs}
        wanted = {node.name or "": Halvable(node, self._opsets) for node in self._before}
        for node in self._before:
            for index, value in enumerate(node.inputs):
                if value is not None and is_float(value, self.floats):
                    half = node.name in self.plan.nodes and wanted[node.name or ""].input(index)
                    self._read(node, index, value, half=half)
        self._read_in_bodies()
        if not self.emulated:
            self._type_nodes(wanted)
        self._finish_outputs(outputs)

    def _is_half(self, value: ir.Value) -> bool:
        return value.name in self.plan.values

    def _read(self, node: ir.Node, index: int, value: ir.Value, *, half: bool) -> None:
        """Have a node read a value in the type that it computes in."""
        if value.is_initializer() and not value.is_graph_input():
            if half:
                node.replace_input_with(index, self._half_constant(value))
            return
        if self._is_half(value) != half or (self.emulated and half):
            node.replace_input_with(index, self._converted(value, half=half))

    def _half_constant(self, value: ir.Value) -> ir.Value:
        name = value.name or ""
        if name in self._halves:
            return self._halves[name]
        tensor = value.const_value
        assert tensor is not None
        made = ir.Value(name=f"{name}/half", shape=value.shape, type=FLOAT if self.emulated else HALF)
        made.const_value = self._rounded(tensor, made.name or "")
        self.graph.register_initializer(made)
        self._halves[name] = made
        return made

    def _rounded(self, tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
        """A weight in float16, read when it is written."""
        emulated = self.emulated

        def numbers() -> ir.TensorProtocol:
            half = tensor.numpy().astype(np.float16)
            return ir.tensor(half.astype(np.float32) if emulated else half)

        if tensor.size <= 1024:
            return ir.tensor(numbers().numpy(), name=name)
        dtype = ir.DataType.FLOAT if emulated else ir.DataType.FLOAT16
        return ir.LazyTensor(numbers, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)

    def _converted(self, value: ir.Value, *, half: bool) -> ir.Value:
        """A value in the other type, made once."""
        key = (value.name or "", half)
        if key not in self._cast:
            if self.emulated and not half and not self._is_half(value):
                return value
            self._cast[key] = self._round_trip(value) if self.emulated else self._one_cast(value, half=half)
        return self._cast[key]

    def _one_cast(self, value: ir.Value, *, half: bool) -> ir.Value:
        to = HALF if half else FLOAT
        node = ir.node("Cast", [value], {"to": int(to.dtype)}, name=f"{value.name}/{'half' if half else 'single'}")
        output = node.outputs[0]
        output.name, output.type, output.shape = f"{node.name}_output", to, value.shape
        insert_behind(value, [node])
        return output

    def _round_trip(self, value: ir.Value) -> ir.Value:
        """A value as float16 rounds it, in float32; the same for all that read it."""
        for half in (True, False):
            if (value.name or "", half) in self._cast:
                return self._cast[value.name or "", half]
        down = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT16)}, name=f"{value.name}/rounded")
        down.outputs[0].name, down.outputs[0].type = f"{value.name}/rounded_half", HALF
        up = ir.node("Cast", [down.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}/widened")
        up.outputs[0].name, up.outputs[0].type, up.outputs[0].shape = f"{value.name}/rounded_output", FLOAT, value.shape
        insert_behind(value, [down, up])
        return up.outputs[0]

    def _read_in_bodies(self) -> None:
        """Bodies of control flow read float32: what they take from the main graph is widened for them."""
        for node in list(self.graph.all_nodes()):
            if node.graph is self.graph:
                continue
            for index, value in enumerate(node.inputs):
                if value is not None and self._is_half(value) and value.graph is self.graph:
                    node.replace_input_with(index, self._converted(value, half=False))

    def _type_nodes(self, wanted: dict[str, Halvable]) -> None:
        """Say in attributes and types what is float16 now."""
        for node in self._before:
            for value in node.outputs:
                if self._is_half(value):
                    value.type = HALF
            if node.name not in self.plan.nodes or not any(self._is_half(value) for value in node.outputs):
                continue
            if node.op_type == "Cast" and node.domain in {"", "ai.onnx"}:
                node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
            filled = node.attributes.get("value") if node.op_type == "ConstantOfShape" else None
            if node.op_type == "ConstantOfShape":
                number = np.zeros(1, np.float32) if filled is None else filled.as_tensor().numpy()
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(number.astype(np.float16)))
        for value in self.graph.inputs:
            if self._is_half(value):
                value.type = HALF

    def _finish_outputs(self, outputs: dict[int, str]) -> None:
        """Give the graph's outputs their names and types again: float32, but for a cache that is float16."""
        for place, value in enumerate(list(self.graph.outputs)):
            if not self._is_half(value):
                continue
            name = outputs[id(value)]
            if self.plan.cache and name.startswith("present."):
                if self.emulated:
                    self._replace_output(place, value, name, self._converted(value, half=True))
                continue
            self._replace_output(place, value, name, self._converted(value, half=False))

    def _replace_output(self, place: int, value: ir.Value, name: str, made: ir.Value) -> None:
        value.name, made.name = f"{name}/before", name
        if made.shape is None:
            made.shape = value.shape
        self.graph.outputs[place] = made


def drop_unread(model: ir.Model) -> None:
    """Remove initializers that nothing reads any more: float32 weights whose float16 took their place."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_input() and not value.is_graph_output():
            del graph.initializers[name]
