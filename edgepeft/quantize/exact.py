"""A quantized graph that computes with the numbers it holds and with activations as they are, for comparison with PyTorch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graph.nodes import FLOAT, constant, is_quantized_linear
from ..graph.passes.edit import home_of


def compute_exactly(graph: ir.Model) -> None:
    """Let a graph's kernels keep activations in float32, in place; its weights stay the bytes they are.

    ``accuracy_level`` 4 rounds activations to 8 bits inside MatMulNBits, and the ``int8`` recipe rounds them in the graph. Both
    move logits by far more than a mistake worth finding. Without them a graph must agree with PyTorch, computing with the same
    rounded weights, as closely as a float one.
    """
    for node in list(graph.graph.all_nodes()):
        if is_quantized_linear(node) and "accuracy_level" in node.attributes:
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)
        elif node.op_type == "MatMulInteger" and node.domain == "":
            _multiply_floats(graph.graph, node)


def _multiply_floats(graph: ir.Graph, node: ir.Node) -> None:
    """``MatMulInteger(QuantizeLinear(x), W, zero)`` as ``MatMul(x, W)`` in floats: what it is without the rounding of ``x``.

    A DequantizeLinear widens W in each run: a Cast would be folded when the graph is opened, and all weights held in float32.
    """
    rounded = node.inputs[0].producer() if node.inputs[0] is not None else None
    if rounded is None or rounded.op_type != "QuantizeLinear":
        return
    unit = constant(graph, "edgepeft.exact.unit", np.array(1, np.float32))
    wide = ir.node("DequantizeLinear", [node.inputs[1], unit], name=f"{node.name}/weight")
    wide.outputs[0].name, wide.outputs[0].type = f"{node.name}/weight_output", FLOAT
    product = ir.node("MatMul", [rounded.inputs[0], wide.outputs[0]], name=f"{node.name}/exact")
    product.outputs[0].name, product.outputs[0].type = f"{node.name}/exact_output", FLOAT
    home = home_of(node)
    home.insert_before(node, [wide, product])
    node.outputs[0].replace_all_uses_with(product.outputs[0])
    home.remove(node, safe=True)
