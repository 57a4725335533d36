"""Transposes of weights, folded into the weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def fold_transposes(graph: ir.Model) -> int:
    """Replace each ``Transpose`` of an initializer by a transposed initializer; how many there were.

    Exporters that do not optimize leave weights behind a Transpose, where neither quantizers nor slots find them.
    """
    folded = 0
    for node in list(graph.graph):
        if node.op_type != "Transpose" or node.domain != "":
            continue
        source = node.inputs[0]
        if source is None or source.const_value is None or not source.is_initializer() or source.is_graph_input():
            continue
        perm = node.attributes.get_ints("perm", None)
        array = np.ascontiguousarray(np.transpose(source.const_value.numpy(), perm))
        output = node.outputs[0]
        name = f"{source.name}.transposed"
        value = graph.graph.initializers.get(name)
        if value is None:
            value = ir.Value(
                name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(array.shape), type=source.type
            )
            graph.graph.register_initializer(value)
        output.replace_all_uses_with(value, replace_graph_outputs=True)
        graph.graph.remove(node, safe=True)
        folded += 1
        if not source.uses():
            del graph.graph.initializers[source.name or ""]
    return folded
