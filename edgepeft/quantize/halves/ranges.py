"""The largest magnitude of every float in a graph, as one more output of each run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...graph.nodes import FLOAT, constant

#: The output: one float for each watched value, ``[values]``.
LARGEST = "edgepeft.largest"


def write_watched(prepared: Path, target: Path, floats: Collection[str]) -> tuple[str, ...]:
    """Write a prepared graph with the largest magnitude of each value in ``floats`` as the output :data:`LARGEST`.

    Infinities do not count: masks hold them, and float16 has them too. A value that is no number comes out as one.

    Args:
        prepared: What :func:`~.prepare.prepare` wrote.
        target: The file to write, in the same folder.
        floats: Values of the main graph.

    Returns:
        The values, in the order of the output. Slots and other inputs with a default are left out: what is fed to them is known.
    """
    model = ir.load(prepared)
    graph = model.graph
    values = [value for value in graph.inputs if value.name not in graph.initializers]
    values += [value for node in graph for value in node.outputs]
    watched = [value for value in values if value.name in floats]
    zero = constant(graph, "edgepeft.watch.zero", np.zeros(1, np.float32))
    flat = constant(graph, "edgepeft.watch.flat", np.array([-1], np.int64))
    axis = constant(graph, "edgepeft.watch.axis", np.array([0], np.int64))
    found = [_largest(graph, value, zero, flat, axis) for value in watched]
    together = ir.node("Concat", found, {"axis": 0}, name=LARGEST)
    output = together.outputs[0]
    output.name, output.type, output.shape = LARGEST, FLOAT, ir.Shape([len(found)])
    graph.append(together)
    graph.outputs.append(output)
    ir.save(model, target)
    return tuple(value.name or "" for value in watched)


def _largest(graph: ir.Graph, value: ir.Value, zero: ir.Value, flat: ir.Value, axis: ir.Value) -> ir.Value:
    """``[1]``: the largest magnitude among the finite numbers of ``value``, 0 where there are none."""

    def add(op: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=f"{value.name}/watch/{op}")
        node.outputs[0].name = f"{value.name}/watch/{op}_output"
        graph.append(node)
        return node.outputs[0]

    size = add("Abs", [value])
    kept = add("Where", [add("IsInf", [size]), zero, size])
    several = add("Concat", [zero, add("Reshape", [kept, flat])], axis=0)  # a cache of no tokens has no largest number
    if graph.opset_imports.get("", 0) >= 18:
        return add("ReduceMax", [several, axis], keepdims=1)
    node = ir.node("ReduceMax", [several], {"axes": [0], "keepdims": 1}, name=f"{value.name}/watch/largest")
    node.outputs[0].name = f"{value.name}/watch/largest_output"
    graph.append(node)
    return node.outputs[0]
