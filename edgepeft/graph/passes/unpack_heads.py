"""Heads behind one encoder as linear maps of their own: what packs an attention's projections packs them too."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .edit import EditPass, home_of


class UnpackHeads(EditPass[ir.passes.PassResult]):
    """Writes a MatMul by the weights of several heads, whose output is split, as a MatMul for each.

    Adapters replace the head of one task, and each has a width of its own, so one packed matrix cannot hold them. Heads are
    what reads a graph's features, the output named ``last_hidden_state``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Unpack them."""
        features = [value for value in model.graph.outputs if value.name == "last_hidden_state"]
        changed = False
        for value in features:
            for node, index in tuple(value.uses()):
                changed |= index == 0 and _unpack(model.graph, node)
        return ir.passes.PassResult(model, changed)


def _unpack(graph: ir.Graph, node: ir.Node) -> bool:
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    users = [user for user, _ in node.outputs[0].uses()]
    if weight is None or weight.const_value is None or [user.op_type for user in users] != ["Split"]:
        return False
    split = users[0]
    sizes = split.inputs[1] if len(split.inputs) > 1 else None
    if sizes is None or sizes.const_value is None:
        return False
    array, offset = weight.const_value.numpy(), 0
    for place, (size, output) in enumerate(zip(sizes.const_value.numpy(), split.outputs, strict=True)):
        name = f"{weight.name}.{place}"
        part = np.ascontiguousarray(array[:, offset : offset + int(size)])
        offset += int(size)
        value = ir.Value(
            name=name, shape=ir.Shape(part.shape), type=weight.type, const_value=ir.tensor(part, name=name)
        )
        graph.register_initializer(value)
        product = ir.node("MatMul", [node.inputs[0], value], name=f"{node.name or name}/{place}")
        product.outputs[0].shape, product.outputs[0].type = output.shape, output.type
        home_of(split).insert_before(split, [product])
        output.replace_all_uses_with(product.outputs[0], replace_graph_outputs=True)
    home_of(split).remove(split, safe=True)
    home_of(node).remove(node, safe=True)
    return True
