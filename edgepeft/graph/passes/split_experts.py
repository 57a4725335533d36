"""Experts that a traced graph takes out of one stacked weight, as linear maps with weights of their own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .edit import EditPass, home_of, nodes_of


class SplitExperts(EditPass[ir.passes.PassResult]):
    """Gives every expert that is split off a constant ``[experts, rows, columns]`` an initializer of its own.

    transformers' exporter writes Split and Squeeze before each expert's MatMul; ONNX Runtime folds those when it opens the
    graph, but until then no expert is a matrix that can be found, edited or quantized.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Split every stack."""
        split = [_split(node) for node in nodes_of(model)]
        return ir.passes.PassResult(model, any(split))


def _split(node: ir.Node) -> bool:
    stack = node.inputs[0] if node.op_type == "Split" and node.domain == "" else None
    tensor = stack.const_value if stack is not None and stack.is_initializer() else None
    if stack is None or tensor is None or len(tensor.shape) != 3 or node.attributes.get_int("axis", 0) != 0:
        return False
    squeezed = [[user for user, _ in output.uses()] for output in node.outputs]
    if len(node.outputs) != tensor.shape[0] or not all(_is_squeeze(user) for users in squeezed for user in users):
        return False
    holder = stack.graph
    assert holder is not None
    for expert, (array, users) in enumerate(zip(tensor.numpy(), squeezed, strict=True)):
        name = f"{stack.name}.{expert}"
        value = holder.initializers.get(name)
        if value is None:
            value = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=stack.type,
                const_value=ir.tensor(np.ascontiguousarray(array), name=name),
            )
            holder.register_initializer(value)
        for user in users:
            user.outputs[0].replace_all_uses_with(value)
            home_of(user).remove(user, safe=True)
    home_of(node).remove(node, safe=True)
    if not stack.uses():
        del holder.initializers[stack.name or ""]
    return True


def _is_squeeze(node: ir.Node) -> bool:
    """Whether ``node`` drops the first axis."""
    axes = node.inputs[1] if node.op_type == "Squeeze" and len(node.inputs) > 1 else None
    return (
        axes is not None
        and axes.const_value is not None
        and axes.const_value.numpy().tolist() == [0]
        and not node.outputs[0].is_graph_output()
    )
