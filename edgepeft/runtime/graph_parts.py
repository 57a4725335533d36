"""A graph's bytes cut into consecutive parts, each a model of its own, so that a session holds one part's weights at a time.

ONNX Runtime holds weights of few bits once more in the layout of its kernels, and makes copies of what it can compute beforehand.
Before the graph is cut, what would keep it from reading a weight where it lies is taken out (:mod:`.part_weights`). Devices have no
library for graphs, and importing one takes longer than all of this. Field numbers are those of ``onnx.proto`` (ONNX 1.23).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..bundle.protobuf import Buffer, Field, all_fields, block, number, varint
from .part_weights import PartNode, ready
from .stored_weights import StoredWeight, read_weight
from .twin_nodes import GRAPH, NODE, read_graph, read_node, text

_NAME, _INITIALIZER, _INPUT, _OUTPUT = 2, 5, 11, 12  # of GraphProto
_VALUE_NAME, _VALUE_TYPE = 1, 2  # of ValueInfoProto
_TENSOR, _ELEMENT, _SHAPE, _DIM, _DIM_VALUE, _DIM_NAME = 1, 1, 2, 1, 1, 2  # of TypeProto and what it holds
#: TensorProto.DataType by ONNX Runtime's name, which is numpy's but for two.
_TYPES = {
    "float": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "string": 8, "bool": 9, "float16": 10,
    "double": 11, "uint32": 12, "uint64": 13, "bfloat16": 16,
}  # fmt: skip
_NUMPY = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class Told:
    """An input or output, as a session tells it."""

    name: str
    shape: list[int | str]
    type: str


@dataclass(frozen=True)
class Part:
    """Consecutive nodes: the values that they take from before, or from outside, and those that they leave for later.

    ``optional`` are inputs of the whole graph that have a default.
    """

    inputs: tuple[str, ...]
    optional: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[PartNode, ...]
    weights: tuple[StoredWeight, ...]


class GraphParts:
    """A graph in parts.

    Args:
        model: An ONNX file's bytes.
        budget: Bytes of weights that one part may have. A weight counts in each part that reads it. A larger weight of few bits is
            read in slices of its rows, each in a part of its own; any other larger weight has its part for itself.

    Raises:
        IndexError: The bytes are no ONNX graph.
    """

    def __init__(self, model: bytes, budget: int) -> None:
        top, graph, held = read_graph(model)
        self._top = [model[field.start : field.end] for field in top if field is not graph]
        given = [(_told(model, field), model[field.start : field.end]) for field in held if field.number == _INPUT]
        left = [(_told(model, field), model[field.start : field.end]) for field in held if field.number == _OUTPUT]
        weights = {w.name: w for w in (read_weight(model, field) for field in held if field.number == _INITIALIZER)}
        self._given = {value.name: content for value, content in given}
        self._left = {value.name: content for value, content in left}
        #: Inputs that a run must be fed, those that have a default, and outputs.
        self.inputs = [value for value, _ in given if value.name not in weights]
        self.overridable = [value for value, _ in given if value.name in weights]
        self.outputs = [value for value, _ in left]
        self._defaults = {value.name: weights[value.name] for value in self.overridable}
        constant = {name: weight for name, weight in weights.items() if name not in self._defaults}
        nodes = [part_node(model, field) for field in held if field.number == NODE]
        kept = ready(nodes, constant, self._left, budget)
        self.parts = list(self._cut(kept, constant, budget))

    def _cut(self, nodes: list[PartNode], constant: Mapping[str, StoredWeight], budget: int) -> Iterator[Part]:
        made = {name: place for place, node in enumerate(nodes) for name in node.outputs if name}
        last_read = {name: place for place, node in enumerate(nodes) for name in node.reads}
        last_read |= {value.name: len(nodes) for value in self.outputs}
        fed = {value.name for value in self.inputs}
        for start, stop in _ranges(nodes, constant, budget):
            inside = nodes[start:stop]
            taken = dict.fromkeys(name for node in inside for name in node.reads)
            yield Part(
                inputs=tuple(name for name in taken if name in fed or made.get(name, start) < start),
                optional=tuple(name for name in taken if name in self._defaults),
                outputs=tuple(
                    name for node in inside for name in node.outputs if name and last_read.get(name, -1) >= stop
                ),
                nodes=tuple(inside),
                weights=tuple(constant[name] for name in taken if name in constant),
            )

    def model_of(self, part: Part, feeds: Mapping[str, np.ndarray]) -> bytes:
        """A part as a model. Its weights stay in their files, which are named as in the whole graph.

        Args:
            part: One of :attr:`parts`.
            feeds: An array for each of its inputs, which tells types and ranks.
        """
        graph = [
            block(_NAME, "part"),
            *(node.content for node in part.nodes),
            *(block(_INITIALIZER, weight.content) for weight in part.weights),
            *(self._given.get(name) or _boundary(name, feeds[name]) for name in part.inputs),
        ]
        for name in part.optional:
            graph += [self._given[name], block(_INITIALIZER, self._defaults[name].content)]
        graph += [self._left.get(name) or block(_OUTPUT, block(_VALUE_NAME, name)) for name in part.outputs]
        return b"".join([*self._top, block(GRAPH, graph)])


def _ranges(nodes: list[PartNode], constant: Mapping[str, StoredWeight], budget: int) -> Iterator[tuple[int, int]]:
    """From where to where each part's nodes go: a part ends before the node with which it would hold too much."""
    start, held = 0, dict[str, int]()
    for place, node in enumerate(nodes):
        own = {name: constant[name].nbytes for name in node.reads if name in constant}
        if held and sum({**held, **own}.values()) > budget:
            yield start, place
            start, held = place, {}
        held |= own
    yield start, len(nodes)


def _boundary(name: str, array: np.ndarray) -> bytes:
    """An input of a part that another part makes."""
    element = number(_ELEMENT, _TYPES[_NUMPY.get(array.dtype.name, array.dtype.name)])
    shape = block(_SHAPE, [block(_DIM, b"")] * array.ndim)
    return block(_INPUT, [block(_VALUE_NAME, name), block(_VALUE_TYPE, block(_TENSOR, [element, shape]))])


def input_names(model: Buffer, held: list[Field]) -> list[str]:
    """The names of a graph's inputs; ``held`` are its fields."""
    return [_told(model, field).name for field in held if field.number == _INPUT]


def part_node(model: Buffer, field: Field) -> PartNode:
    """The node that a field of the graph holds, with what its branches read."""
    node = read_node(model, field)
    inner = _inside(model, field) if node.nested else ()
    return PartNode(
        bytes(model[field.start : field.end]),
        node.inputs,
        node.outputs,
        node.op,
        node.domain,
        node.attributes,
        tuple(inner),
    )


def _inside(model: Buffer, field: Field) -> Iterator[str]:
    """What the nodes in a node's branches read, of their own and from outside."""
    for attribute in all_fields(model, field.first, field.end):
        if attribute.number != 5:
            continue
        for graph in all_fields(model, attribute.first, attribute.end):
            if graph.number in (6, 11):
                for each in all_fields(model, graph.first, graph.end):
                    if each.number == NODE:
                        yield from part_node(model, each).reads


def _told(model: Buffer, field: Field) -> Told:
    """A ValueInfoProto."""
    name, element, shape = "", 0, list[int | str]()
    for value in all_fields(model, field.first, field.end):
        if value.number == _VALUE_NAME:
            name = text(model, value)
        if value.number != _VALUE_TYPE:
            continue
        for tensor in all_fields(model, value.first, value.end):
            for inner in all_fields(model, tensor.first, tensor.end) if tensor.number == _TENSOR else ():
                if inner.number == _ELEMENT:
                    element, _ = varint(model, inner.first, inner.end)
                if inner.number == _SHAPE:
                    shape = [_dim(model, dim) for dim in all_fields(model, inner.first, inner.end)]
    kind = next((kind for kind, each in _TYPES.items() if each == element), "")
    return Told(name, shape, f"tensor({kind})" if kind else "")


def _dim(model: Buffer, field: Field) -> int | str:
    for inner in all_fields(model, field.first, field.end):
        if inner.number == _DIM_VALUE:
            return varint(model, inner.first, inner.end)[0]
        if inner.number == _DIM_NAME:
            return text(model, inner)
    return ""
