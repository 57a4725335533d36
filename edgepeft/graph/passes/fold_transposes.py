"""Transposes of weights, folded into the weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .edit import EditPass, home_of, nodes_of


class FoldTransposes(EditPass[ir.passes.PassResult]):
    """Replaces each ``Transpose`` of an initializer by a transposed initializer.

    Exporters that do not optimize leave weights behind a Transpose, where neither quantizers nor slots find them.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold them all."""
        folded = [_fold(node) for node in nodes_of(model)]
        return ir.passes.PassResult(model, any(folded))


def _fold(node: ir.Node) -> bool:
    if node.op_type != "Transpose" or node.domain != "":
        return False
    source = node.inputs[0]
    if source is None or source.const_value is None or not source.is_initializer() or source.is_graph_input():
        return False
    holder = source.graph  # a body of control flow reads the weights of the graphs around it
    assert holder is not None
    perm = node.attributes.get_ints("perm", None)
    array = np.ascontiguousarray(np.transpose(source.const_value.numpy(), perm))
    output = node.outputs[0]
    name = f"{source.name}.transposed"
    value = holder.initializers.get(name)
    if value is None:
        value = ir.Value(
            name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(array.shape), type=source.type
        )
        holder.register_initializer(value)
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    home_of(node).remove(node, safe=True)
    if not source.uses():
        del holder.initializers[source.name or ""]
    return True
