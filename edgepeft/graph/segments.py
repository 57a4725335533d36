"""A graph cut into consecutive parts, each in a file of its own, so that a session holds one part's weights at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from .nodes import FLOAT


@dataclass(frozen=True)
class Segment:
    """Consecutive nodes of a graph: what they take from before, or from outside, and what they leave for later."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def values_read(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, in the graphs of its branches too."""
    for value in node.inputs:
        if value is not None:
            yield value
    for attribute in node.attributes.values():
        graphs = (
            [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH
            else attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS
            else []
        )  # fmt: skip
        for graph in graphs:
            for inner in graph:
                yield from values_read(inner)


def cut(graph: ir.Graph, budget: int) -> list[Segment]:
    """Cut a graph where the weights of the nodes so far are more than ``budget`` bytes.

    A weight counts once in each part that reads it. Initializers that are inputs too (slots) are taken from outside.
    """
    nodes = list(graph)
    fed = {value.name or "" for value in graph.inputs}
    made = {value.name or "": place for place, node in enumerate(nodes) for value in node.outputs}
    last_read = {value.name or "": place for place, node in enumerate(nodes) for value in values_read(node)}
    last_read |= {value.name or "": len(nodes) for value in graph.outputs}
    segments = []
    for start, stop in _ranges(graph, nodes, budget):
        inside = nodes[start:stop]
        taken = dict.fromkeys(value.name or "" for node in inside for value in values_read(node))
        before = tuple(name for name in taken if name in fed or (name in made and made[name] < start))
        left = tuple(
            value.name or "" for node in inside for value in node.outputs if last_read.get(value.name or "", -1) >= stop
        )
        segments.append(Segment(before, left))
    return segments


def _ranges(graph: ir.Graph, nodes: Sequence[ir.Node], budget: int) -> Iterator[tuple[int, int]]:
    counted: set[str] = set()
    start, held = 0, 0
    for place, node in enumerate(nodes):
        new = _weights(graph, node, counted)
        size = sum(new.values())
        if held and held + size > budget:
            yield start, place
            start, held, counted = place, 0, set()
            new = _weights(graph, node, counted)
            size = sum(new.values())
        held += size
        counted |= new.keys()
    yield start, len(nodes)


def _weights(graph: ir.Graph, node: ir.Node, counted: set[str]) -> dict[str, int]:
    """Bytes of the weights that a node reads, but for those that are ``counted``."""
    return {
        value.name or "": value.const_value.nbytes
        for value in values_read(node)
        if value.name in graph.initializers and value.name not in counted and value.const_value is not None
    }


def write_segment(model: ir.Model, segment: Segment, values: Mapping[str, np.ndarray], file: Path) -> None:
    """Write a segment as a graph of its own.

    Args:
        model: The graph that was cut.
        segment: The part.
        values: An example of each of its inputs, which tells types and ranks.
        file: The file to write, in the folder of the graph's weights, which stay where they are.
    """
    graph = ir.convenience.extract(model.graph, list(segment.inputs), list(segment.outputs))
    for value in graph.inputs:
        array = values[value.name or ""]
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        value.shape = ir.Shape([None] * array.ndim)
    for value in graph.outputs:
        if value.type is None:
            value.type = FLOAT
    graph.opset_imports.update(model.graph.opset_imports)
    ir.save(ir.Model(graph, ir_version=model.ir_version, functions=tuple(model.functions.values())), file)


def view_tables(graph: ir.Graph) -> None:
    """Let a weight that is read under another shape be one of that shape, over the same bytes of its file.

    ONNX Runtime copies what a Reshape gives, which of an embedding is as large as the head that it is tied to.
    """
    for node in list(graph):
        if node.op_type != "Reshape" or node.domain != "" or node.outputs[0].is_graph_output():
            continue
        weight, shape = node.inputs[0], node.inputs[1]
        tensor = None if weight is None else weight.const_value
        if weight is None or shape is None or shape.const_value is None or not isinstance(tensor, ir.ExternalTensor):
            continue
        dims = ir.Shape(_reshaped(tensor.shape.numpy(), shape.const_value.numpy().tolist()))
        name = f"{weight.name}.view"
        view = ir.ExternalTensor(
            tensor.location, tensor.offset, tensor.length, tensor.dtype, shape=dims, name=name, base_dir=tensor.base_dir
        )
        value = ir.Value(name=name, shape=dims, type=ir.TensorType(tensor.dtype), const_value=view)
        graph.register_initializer(value)
        node.outputs[0].replace_all_uses_with(value)
        graph.remove(node, safe=True)


def _reshaped(shape: Sequence[int], asked: Sequence[int]) -> list[int]:
    """What Reshape makes of a shape: 0 keeps a dimension, and -1 is what is left."""
    found = [shape[place] if dim == 0 else dim for place, dim in enumerate(asked)]
    known = math.prod(dim for dim in found if dim != -1)
    return [math.prod(shape) // known if dim == -1 else dim for dim in found]
