"""``logits_from``: an input that lets a run ask for its last logits only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..nodes import constant, is_linear
from .edit import EditPass

#: The input.
NAME = "logits_from"


def _head(graph: ir.Model) -> ir.Node | None:
    """The MatMul that gives the logits, found backwards through what scales or caps them."""
    value = next((v for v in graph.graph.outputs if v.name == "logits"), None)
    while value is not None:
        node = value.producer()
        if node is None:
            return None
        if is_linear(node):
            return node
        if node.op_type not in {"Mul", "Div", "Tanh", "Add", "Cast", "Identity"}:
            return None
        produced = [v for v in node.inputs if v is not None and v.producer() is not None]
        produced = [v for v in produced if v.producer().op_type != "Constant"]  # type: ignore[union-attr]
        value = produced[0] if len(produced) == 1 else None
    return None


class AddLogitsFrom(EditPass[ir.passes.PassResult]):
    """Lets a run ask for the logits of its last positions only, through an input with a default: ``logits_from`` = 0.

    The head is a fifth of a small model's work; a prompt needs one row of it. Where no head is found in the main graph, or
    the input is there already, nothing changes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the input, and the Slice before the head."""
        head = _head(model)
        if head is None or head.op_type == "Gemm" or NAME in model.graph.initializers:
            return ir.passes.PassResult(model, modified=False)
        _slice(model.graph, head)
        return ir.passes.PassResult(model, modified=True)


def _slice(graph: ir.Graph, head: ir.Node) -> None:
    start = ir.Value(
        name=NAME,
        shape=ir.Shape([1]),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=ir.tensor(np.zeros(1, np.int64), name=NAME),
    )
    graph.inputs.append(start)
    graph.register_initializer(start)
    end = constant(graph, "edgepeft.end", np.array([np.iinfo(np.int64).max], np.int64))
    axis = constant(graph, "edgepeft.axis_1", np.array([1], np.int64))
    hidden = head.inputs[0]
    assert hidden is not None
    node = ir.node("Slice", [hidden, start, end, axis], name="logits_from/Slice")
    node.outputs[0].name = "logits_from/hidden"
    node.outputs[0].type = hidden.type
    if hidden.shape is not None:
        node.outputs[0].shape = ir.Shape([hidden.shape[0], "logits_length", hidden.shape[2]])
    graph.insert_before(head, node)
    head.replace_input_with(0, node.outputs[0])
    for output in graph.outputs:
        if output.name == "logits" and output.shape is not None:
            output.shape = ir.Shape([output.shape[0], "logits_length", output.shape[2]])
