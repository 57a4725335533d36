"""The node-level edits of slot insertion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..errors import SiteError

Dim = int | str
FLOAT = ir.TensorType(ir.DataType.FLOAT)


def is_linear(node: ir.Node) -> bool:
    """Whether ``node`` is a MatMul, one with a weight in blocks of few bits, or a Gemm that is one up to a bias and a
    transposed weight."""
    if is_quantized_linear(node):
        return True
    if node.domain != "":
        return False
    if node.op_type == "MatMul":
        return True
    return node.op_type == "Gemm" and (
        node.attributes.get_float("alpha", 1.0) == 1.0
        and node.attributes.get_float("beta", 1.0) == 1.0
        and node.attributes.get_int("transA", 0) == 0
    )


def is_quantized_linear(node: ir.Node) -> bool:
    """Whether ``node`` is ONNX Runtime's MatMulNBits, whose weight ``[out, in]`` is stored in blocks."""
    return node.op_type == "MatMulNBits" and node.domain == "com.microsoft"


def is_quantized(value: ir.Value) -> bool:
    """Whether an initializer holds a weight's numbers rounded to few bits."""
    tensor = value.const_value
    return tensor is not None and tensor.dtype in {
        ir.DataType.UINT8,
        ir.DataType.INT8,
        ir.DataType.INT4,
        ir.DataType.UINT4,
    }


def linear_features(node: ir.Node, weight: ir.Value) -> tuple[int, int]:
    """How many numbers go in and come out of a linear node with that weight."""
    if is_quantized_linear(node):
        return node.attributes.get_int("K"), node.attributes.get_int("N")
    assert weight.const_value is not None
    rows, columns = (int(dim) for dim in weight.const_value.shape)  # type: ignore[arg-type]
    return (columns, rows) if weight_is_transposed(node) else (rows, columns)


def _is_transpose(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and node.domain == "" and node.attributes.get_ints("perm", (1, 0)) == (1, 0)


def linear_users(value: ir.Value) -> list[ir.Node]:
    """The linear nodes that multiply by ``value`` from the right, as it is or behind a Transpose.

    A head that is tied to the embedding stands behind one: the weight is stored once, and ONNX Runtime transposes it
    when it opens the model.
    """
    users = [node for node, index in value.uses() if index == 1 and is_linear(node)]
    for node, _ in value.uses():
        if _is_transpose(node):
            users.extend(user for user, index in node.outputs[0].uses() if index == 1 and is_linear(user))
    return users


def weight_is_transposed(node: ir.Node) -> bool:
    """Whether a linear node's weight lies as ``[out, in]``."""
    if is_quantized_linear(node):
        return True
    weight = node.inputs[1]
    behind = weight is not None and weight.producer() is not None
    return behind or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1)


def is_flat(node: ir.Node) -> bool:
    """Whether a linear node's activation is 2-D, so that a slot needs an axis for the sequence."""
    if node.op_type == "Gemm":
        return True
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None:
        raise SiteError(
            f"node {node.name}: the rank of its activation is unknown; run shape inference on the graph first"
        )
    return len(shape) == 2


def slot_input(graph: ir.Graph, name: str, shape: Sequence[Dim], default: np.ndarray) -> ir.Value:
    """A graph input with a default: an initializer that may be overridden at run time."""
    value = ir.Value(name=name, shape=ir.Shape(list(shape)), type=FLOAT, const_value=ir.tensor(default, name=name))
    graph.inputs.append(value)
    graph.register_initializer(value)
    return value


def factor_input(graph: ir.Graph, name: str, shape: Sequence[Dim], out_axis: int) -> ir.Value:
    """The second factor of a low-rank change as a graph input: a rank of zero (the strings in ``shape``) by default.

    Without an adapter the change is then zeros, and the default is one output wide instead of ``shape``'s ``out_axis``:
    zeros are broadcast to the base's output, which halves what an empty slot costs. An adapter's is as wide as the output.
    """
    default = [0 if isinstance(dim, str) and dim != "adapter_batch" else 1 for dim in shape]
    declared = list(shape)
    declared[out_axis] = f"{name}.width"
    return slot_input(graph, name, declared, np.zeros(default, np.float32))


def constant(graph: ir.Graph, name: str, numbers: np.ndarray | ir.LazyTensor) -> ir.Value:
    """The constant of that name, registered once; ``numbers`` may be made later."""
    existing = graph.initializers.get(name)
    if existing is not None:
        return existing
    tensor: ir.TensorProtocol
    if isinstance(numbers, ir.LazyTensor):
        numbers.name, tensor = name, numbers
    else:
        tensor = ir.tensor(numbers, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


class Chain:
    """Builds nodes that are inserted after an anchor and then stand in for one of its values."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self.graph = graph
        self.prefix = prefix
        self.nodes: list[ir.Node] = []

    def add(self, op: str, inputs: Sequence[ir.Value], part: str) -> ir.Value:
        """Append a node; its output is named ``<prefix>/<part>``."""
        node = ir.node(op, inputs, name=f"{self.prefix}/{part}")
        node.outputs[0].name = f"{self.prefix}/{part}_output"
        node.outputs[0].type = FLOAT
        self.nodes.append(node)
        return node.outputs[0]

    def unsqueeze(self, value: ir.Value, part: str) -> ir.Value:
        """``[batch, n]`` to ``[batch, 1, n]``."""
        return self.add("Unsqueeze", [value, constant(self.graph, "edgepeft.axis_1", np.array([1], np.int64))], part)

    def squeeze(self, value: ir.Value, part: str) -> ir.Value:
        """``[batch, 1, n]`` to ``[batch, n]``."""
        return self.add("Squeeze", [value, constant(self.graph, "edgepeft.axis_1", np.array([1], np.int64))], part)

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Insert the nodes after ``old``'s producer and give ``old``'s consumers ``new``; graph outputs keep their name."""
        anchor = old.producer()
        assert anchor is not None
        mine = set(map(id, self.nodes))
        new.shape, new.type = old.shape, old.type
        for user, index in list(old.uses()):
            if id(user) not in mine:
                user.replace_input_with(index, new)
        home = anchor.graph  # the main graph, or a body of control flow
        assert isinstance(home, ir.Graph)
        if old.is_graph_output():
            name = old.name
            for position, output in enumerate(home.outputs):
                if output is old:
                    home.outputs[position] = new
            old.name, new.name = f"{self.prefix}/base_output", name
        home.insert_after(anchor, self.nodes)


def split_bias(graph: ir.Graph, node: ir.Node) -> None:
    """Turn a linear node with a bias into one without and an Add, so that an edit can stand between them."""
    position = 5 if is_quantized_linear(node) else 2
    bias = node.inputs[position] if len(node.inputs) > position else None
    if bias is None:
        return
    chain = Chain(graph, f"{node.name}/bias")
    node.resize_inputs(position)
    total = chain.add("Add", [node.outputs[0], bias], "Add")
    chain.replace(node.outputs[0], total)


def behind_bias(node: ir.Node) -> ir.Value:
    """Where a change is added to a linear node's output: behind the bias of one in blocks of few bits, else before it.

    ONNX Runtime (1.32) adds the bias of a MatMulNBits inside its kernel, or in that of a Gelu that follows, which must stay
    so for the base to keep its bits.
    """
    output = node.outputs[0]
    users = output.uses()
    if not is_quantized_linear(node) or len(users) != 1 or output.is_graph_output():
        return output
    user, index = next(iter(users))
    if user.op_type != "Add" or user.domain != "":
        return output
    other = user.inputs[1 - index]
    tensor = other.const_value if other is not None and other.is_initializer() else None
    to_gelu = any("Gelu" in after.op_type for after, _ in user.outputs[0].uses())
    return user.outputs[0] if tensor is not None and len(tensor.shape) == 1 and not to_gelu else output
