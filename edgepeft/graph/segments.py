"""Consecutive nodes of a graph as a graph of their own, over the same file of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
