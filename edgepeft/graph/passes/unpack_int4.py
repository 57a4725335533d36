"""4-bit weights that are unpacked once, when a session is made, for runtimes without kernels for them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .edit import EditPass, nodes_of, replace_node

#: What MatMulNBits takes away from a 4-bit number where it is given no zero points, twice in a byte.
_MIDDLE = 0x88


class UnpackInt4(EditPass[ir.passes.PassResult]):
    """Replaces each 4-bit MatMulNBits by DequantizeLinear, Transpose and MatMul.

    The quantized tensors keep their bytes, and where those lie: only their type and shape are said differently. A runtime
    that folds constants (``session.disable_quant_qdq`` for ONNX Runtime) then unpacks the weights once and multiplies in
    fp32; one without 4-bit kernels would unpack them in every run. Nodes whose zero points are padded to whole bytes, or
    that take more than weights, scales and zero points, stay.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace them, and declare the opset that has blocks in DequantizeLinear."""
        nodes = [node for node in nodes_of(model) if node.op_type == "MatMulNBits" and _fits(node)]
        for node in nodes:
            _replace(model.graph, node)
        initializers = model.graph.initializers
        unused = [name for name, value in initializers.items() if not value.uses() and not value.is_graph_output()]
        for name in unused:
            del initializers[name]
        if nodes:
            model.graph.opset_imports[""] = max(21, model.graph.opset_imports[""])
        return ir.passes.PassResult(model, bool(nodes or unused))


class SetAccuracyLevel(EditPass[ir.passes.PassResult]):
    """Has every MatMulNBits compute at ``level``: 0 is fp32 activations, 4 lets kernels use 8-bit ones."""

    def __init__(self, level: int) -> None:
        self.level = level

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Set it everywhere."""
        nodes = [node for node in nodes_of(model) if node.op_type == "MatMulNBits"]
        for node in nodes:
            node.attributes.add(ir.AttrInt64("accuracy_level", self.level))
        return ir.passes.PassResult(model, bool(nodes))


def _fits(node: ir.Node) -> bool:
    _, _, blocks = _sizes(node)
    given = [value is not None for value in node.inputs]
    constant = all(value is None or value.const_value is not None for value in node.inputs[1:])
    zero_points = len(given) > 3 and given[3]
    whole = blocks * node.attributes.get_int("block_size", 0) == node.attributes.get_int("K", 0)
    return (
        node.attributes.get_int("bits", 4) == 4 and constant and whole and not any(given[4:])
        and (not zero_points or blocks % 2 == 0)
    )  # fmt: skip


def _sizes(node: ir.Node) -> tuple[int, int, int]:
    """Inputs, outputs, and blocks of inputs."""
    wide, block = node.attributes.get_int("K", 0), node.attributes.get_int("block_size", 1)
    return wide, node.attributes.get_int("N", 0), wide // block


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    wide, narrow, blocks = _sizes(node)
    packed, scales = node.inputs[1], node.inputs[2]
    zero = node.inputs[3] if len(node.inputs) > 3 else None
    assert packed is not None
    assert scales is not None
    name = node.name or packed.name or ""
    weight = _said(graph, packed, f"{name}/packed", ir.DataType.UINT4, [narrow, wide])
    scale = _said(graph, scales, f"{name}/scales", ir.DataType.FLOAT, [narrow, blocks])
    if zero is not None:
        middle = _said(graph, zero, f"{name}/zero", ir.DataType.UINT4, [narrow, blocks])
    else:
        raw = np.full((narrow * blocks + 1) // 2, _MIDDLE, np.uint8)
        shape = ir.Shape([narrow, blocks])
        middle = _register(graph, ir.PackedTensor(raw, ir.DataType.UINT4, shape=shape, name=f"{name}/zero"))
    block = node.attributes.get_int("block_size", 0)
    unpacked = ir.node(
        "DequantizeLinear", [weight, scale, middle], {"axis": 1, "block_size": block}, name=f"{name}/unpack"
    )
    turned = ir.node("Transpose", [unpacked.outputs[0]], {"perm": [1, 0]}, name=f"{name}/turn")
    product = ir.node("MatMul", [node.inputs[0], turned.outputs[0]], name=f"{name}/MatMul")
    unpacked.outputs[0].name, turned.outputs[0].name = f"{name}/unpacked", f"{name}/turned"
    replace_node(node, [unpacked, turned, product])


def _said(graph: ir.Graph, value: ir.Value, name: str, dtype: ir.DataType, dims: list[int]) -> ir.Value:
    """The same bytes under another type and shape."""
    tensor = value.const_value
    shape = ir.Shape(dims)
    if isinstance(tensor, ir.ExternalTensor):
        return _register(
            graph,
            ir.ExternalTensor(
                tensor.location, tensor.offset, tensor.length, dtype, shape=shape, name=name, base_dir=tensor.base_dir
            ),
        )
    assert tensor is not None
    if dtype == ir.DataType.UINT4:
        raw = np.frombuffer(tensor.tobytes(), np.uint8).copy()
        return _register(graph, ir.PackedTensor(raw, dtype, shape=shape, name=name))
    return _register(graph, ir.tensor(tensor.numpy().reshape(dims), name=name))


def _register(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    shape = ir.Shape([int(dim) for dim in tensor.shape])  # type: ignore[arg-type] # a stored tensor has no symbolic size
    value = ir.Value(name=tensor.name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
